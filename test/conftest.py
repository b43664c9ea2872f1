"""What tests with a real engine need: the model, and the flags for this machine."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from sglang.srt.blendserve.store.directory import Store

# Before sglang is imported, here or in a process that a test starts. Without it SGLang looks for
# a GPU; with more threads than free cores its matrix products take several times as long.
HAS_GPU = shutil.which("nvidia-smi") is not None
if not HAS_GPU:
    os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Other work on the machine must not fail a property test, nor luck somebody's unrelated change: the
# examples are the same in every run. `--hypothesis-profile explore` draws new ones.
hypothesis.settings.register_profile("same examples", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile("same examples")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, files with an engine come first: the short ones fill what is left.

    Needs ``--no-loadscope-reorder``, without which files with few tests, the longest here, are
    last, and the last of them runs alone.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        with_engine = {item.path for item in items if item.get_closest_marker("engine")}
        items.sort(key=lambda item: item.path not in with_engine)


@pytest.fixture(autouse=True)
def logs_end_with_the_test() -> Iterator[None]:
    """An `Engine` makes the root logger write to the ``sys.stderr`` of its test, which pytest
    closes with the test: the next record of any other test would end in a traceback."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in before:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Folder of SmolLM2-135M-Instruct; fetched when it is not there yet."""
    from sglang.srt.blendserve.fetch_model.command import fetch

    return fetch("smollm2")


@pytest.fixture(scope="session")
def cpu_engine_kwargs() -> dict[str, Any]:
    """What `sglang.Engine` needs on a machine without a GPU; without its KV pool, size it yourself.

    Empty on a machine with a GPU.
    """
    if HAS_GPU:
        return {}
    return {
        "device": "cpu",
        "attention_backend": "blend_cpu",
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "disable_cuda_graph": True,
        # An engine that waits for its next test would spin on a core that another one needs.
        "sleep_on_idle": True,
    }


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """Folder of a tiny Llama with random weights."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny"), Path(model_path))


@pytest.fixture(scope="session")
def stock_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """What stock SGLang, the plugin kept out, makes of `engine_process.workload`."""
    from engine_process import run

    return run(
        tmp_path_factory.mktemp("stock"),
        {"model_path": str(tiny_model), "max_total_tokens": 20_000},
        env={"SGLANG_PLUGINS": "none"},
    )


@pytest.fixture
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as SGLang's server does."""
    return "asyncio"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a batch directory may be made."""
    return tmp_path / "batch-api"


@pytest.fixture
async def store(directory: Path, anyio_backend: str) -> AsyncIterator[Store]:
    """An open, empty batch directory."""
    from sglang.srt.blendserve.store.directory import Store

    opened = Store(directory)
    try:
        await opened.start()
        yield opened
    finally:
        await opened.close()


@pytest.fixture(scope="session")
def model(model_path: Path) -> str:
    """The same as text, for a command line."""
    return str(model_path)
