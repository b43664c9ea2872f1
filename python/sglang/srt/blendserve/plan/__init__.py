"""From prompts to a scan order (paper sections 5.1 and 5.2). numpy only."""
