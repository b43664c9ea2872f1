"""Lines in, answers out: the one loop behind `run` and the server."""
