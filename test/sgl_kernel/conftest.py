"""One thread unless a test asks for more: the machine may be shared, and a thread that waits for a
busy core makes every kernel call as slow as a time slice."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
