"""Offline commands: `run` a batch file, `plan` one, fetch a small model to try both with."""
