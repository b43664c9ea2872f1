"""Prefill and decode at once, on two lanes of one GPU."""
