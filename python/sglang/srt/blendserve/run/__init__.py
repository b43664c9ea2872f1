"""The command `run`: one batch file, one engine."""
