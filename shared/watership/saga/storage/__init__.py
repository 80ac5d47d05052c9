"""Where sagas are kept: memory, SQLite, Postgres. One protocol, one contract suite."""
