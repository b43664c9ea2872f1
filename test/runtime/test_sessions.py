"""All kinds of requests, aborted jobs, lost clients and short memory, inside the real engine.

With SGLang's strict memory checks on: a KV slot that is lost or counted twice in any step ends
the run. One engine plays many parts (session_run.py), because each start takes long.

pytest test/runtime/test_sessions.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_process import CHECKS, play
from session_run import POOL

pytestmark = pytest.mark.engine

OURS = {"schedule_policy": "blendserve", "chunked_prefill_size": 64, "blendserve_mixed_chunk": "on"}


def session(
    folder: Path, model: Path, parts: list[str], engine: dict[str, Any], env: dict[str, str]
) -> dict[str, Any]:
    """One engine through some parts of session_run.py."""
    order = {"engine": {"model_path": str(model), **engine}, "parts": parts}
    return play("session_run.py", folder, order, env)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """Stock SGLang with plenty of memory, the plugin kept out."""
    return session(
        tmp_path_factory.mktemp("stock"),
        tiny_model,
        ["kinds", "streams", "too_large", "hungry", "lists"],
        {"max_total_tokens": 2 * POOL - 10},
        {"SGLANG_PLUGINS": "none"},
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """The policy on a small KV cache."""
    return session(
        tmp_path_factory.mktemp("ours"),
        tiny_model,
        ["kinds", "streams", "aborted_job", "lost_clients", "too_large", "hungry", "lists"],
        {"max_total_tokens": POOL, "blendserve_list_window": 8, **OURS},
        CHECKS,
    )


def test_log_probabilities_and_grammars_are_those_of_stock_sglang(
    ours: dict[str, Any], stock: dict[str, Any]
) -> None:
    kinds, expected = ours["kinds"], stock["kinds"]
    assert kinds["ids"] == expected["ids"]
    assert kinds["texts"] == expected["texts"]
    assert kinds["prompt_logprobs"] == expected["prompt_logprobs"]
    assert any(kinds["prompt_logprobs"])
    for found, right in zip(kinds["logprobs"], expected["logprobs"], strict=True):
        assert found == pytest.approx(right, abs=2e-3)


def test_streams_come_piece_by_piece(ours: dict[str, Any], stock: dict[str, Any]) -> None:
    assert ours["streams"]["ids"] == stock["streams"]["ids"]
    assert min(ours["streams"]["pieces"]) > 1


def test_an_aborted_job_leaves_the_other_alone(ours: dict[str, Any]) -> None:
    job = ours["aborted_job"]
    assert [len(ids) for ids in job["kept"]] == [5 + 3 * n for n in range(12)]
    assert set(job["gone"]) == {"abort"}


def test_requests_of_lost_clients_are_aborted(ours: dict[str, Any]) -> None:
    assert all("disconnected" in error for error in ours["lost_clients"]["errors"])


def test_a_request_larger_than_the_cache_fails_alone(
    ours: dict[str, Any], stock: dict[str, Any]
) -> None:
    large = ours["too_large"]
    assert large["ids"] == stock["too_large"]["ids"]
    assert [bool(ids) for ids in large["ids"]] == [True, True, False, True]
    assert [bool(error) for error in large["errors"]] == [False, False, True, False]
    assert "tokens" in large["errors"][2]


def test_lists_longer_than_the_window_are_answered_as_by_stock_sglang(
    ours: dict[str, Any], stock: dict[str, Any]
) -> None:
    lists, expected = ours["lists"], stock["lists"]
    for part in ("texts", "again", "several", "streamed"):
        assert lists[part] == expected[part]
    assert lists["streamed"] == lists["texts"]
    assert len(lists["several"]) == 27
    for (prompt, values), (right_prompt, right) in zip(
        lists["scored"], expected["scored"], strict=True
    ):
        assert prompt == right_prompt
        assert values == pytest.approx(right, abs=2e-3)
    assert lists["pieces"] > 2 * len(lists["texts"])
    assert lists["errors"] == expected["errors"]
    assert set(lists["gone"]) == set(expected["gone"]) == {"abort"}


def test_nothing_is_left_behind(ours: dict[str, Any]) -> None:
    assert ours["flushed"]
    state = ours["state"][0]
    assert (state["waiting"], state["running"]) == (0, 0)
    assert state["kv_free"] == state["kv_slots"] == POOL


def test_short_memory_loses_nothing(ours: dict[str, Any], stock: dict[str, Any]) -> None:
    """Outputs that fill the cache several times over, of lengths that nobody is told.

    How many retractions that takes follows the step times of this machine (0 to 14 were seen); it
    is counted where those are the same everywhere, in test/simulator/test_short_memory.py.
    """
    assert ours["hungry"]["ids"] == stock["hungry"]["ids"]
    assert ours["hungry"]["retractions"] < len(ours["hungry"]["ids"])  # nobody goes in circles


def test_retraction_at_any_time_loses_nothing(
    tmp_path: Path,
    tiny_model: Path,
    stock: dict[str, Any],
) -> None:
    """SGLang's own stress: it retracts every few steps, whatever the memory."""
    stress = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
    result = session(
        tmp_path, tiny_model, ["kinds"], {"max_total_tokens": POOL, **OURS}, CHECKS | stress
    )
    assert result["kinds"]["ids"] == stock["kinds"]["ids"]
    assert result["state"][0]["retractions"] > 0
    assert result["state"][0]["kv_free"] == POOL
