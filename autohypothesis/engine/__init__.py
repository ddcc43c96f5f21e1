"""One iteration of a search: prepares, executes and decides one experiment."""
