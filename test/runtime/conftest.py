"""hypothesis without a deadline: other work on the machine must not fail a test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("runtime", deadline=None)
settings.load_profile("runtime")
