"""The offline requests of one engine: what waits, what runs, and the plan in use."""
