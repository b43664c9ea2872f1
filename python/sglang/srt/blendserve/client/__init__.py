"""The commands that use a server's batch API: ours, OpenAI's, or any with the same routes."""
