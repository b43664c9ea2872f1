"""Hypothesis for this folder: no deadline, since other work on the machine must not fail a test."""

from hypothesis import settings

settings.register_profile("runtime", deadline=None)
settings.load_profile("runtime")
