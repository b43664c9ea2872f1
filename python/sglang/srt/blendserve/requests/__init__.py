"""Lines of a batch file as token ids."""
