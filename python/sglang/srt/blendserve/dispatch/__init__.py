"""From the plan over everything to the window of an engine: which request goes in next."""
