"""What an engine without a GPU needs."""
