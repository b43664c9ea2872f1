"""From the global plan to the windows of engines: what is handed over next."""
