"""The command `plan`: what a batch will cost, without an engine."""
