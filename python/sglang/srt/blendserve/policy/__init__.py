"""Which requests join a step (paper section 5.3 as it runs)."""
