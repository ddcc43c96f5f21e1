"""One iteration: prepare, execute, settle. Everything else is a front end on these three."""
