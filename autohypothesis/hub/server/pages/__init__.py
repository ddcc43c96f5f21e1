"""The hub's pages for people: HTML from templates, without any script."""
