"""The hub's server: one process, one database, one bare repository, all in one folder."""
