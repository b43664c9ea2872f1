"""Output lengths: how they are estimated before and while requests run."""
