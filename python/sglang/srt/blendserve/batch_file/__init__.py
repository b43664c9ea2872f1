"""OpenAI's batch file format: lines, validation, result lines."""
