"""Several engines, on this machine or others, as the one that answering needs."""
