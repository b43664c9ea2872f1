"""The batch directory: everything the server must not lose."""
