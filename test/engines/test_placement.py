"""Which cores and GPUs an engine gets.

pytest test/engines/test_placement.py
"""

from __future__ import annotations

import os

import pytest

from sglang.srt.blendserve.engines import placement


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores of this process on two nodes, which take turns."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)})
    monkeypatch.setattr(placement, "_numa_nodes", lambda: [{0, 2, 4, 6}, {1, 3, 5, 7}])


@pytest.mark.usefixtures("cores")
def test_an_engine_gets_cores_of_one_node() -> None:
    first, second = placement.on_cores(2, 1, threads_given=False)
    assert (first.cores, second.cores) == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert first.environment == {
        "OMP_NUM_THREADS": "4",
        "SGLANG_CPU_OMP_THREADS_BIND": "0,2,4,6",
    }


@pytest.mark.usefixtures("cores")
def test_ranks_share_the_cores_of_their_engine() -> None:
    [_, second] = placement.on_cores(2, 2, threads_given=False)
    assert second.environment["SGLANG_CPU_OMP_THREADS_BIND"] == "1,3|5,7"
    assert second.environment["OMP_NUM_THREADS"] == "2"


@pytest.mark.usefixtures("cores")
def test_the_users_own_number_of_threads_stays() -> None:
    assert "OMP_NUM_THREADS" not in placement.on_cores(3, 1, threads_given=True)[0].environment


@pytest.mark.usefixtures("cores")
def test_every_core_belongs_to_one_engine() -> None:
    for engines in range(1, 9):
        placed = placement.on_cores(engines, 1, threads_given=False)
        assert sorted(core for one in placed for core in one.cores) == [*range(8)]
        assert all(one.cores for one in placed)


@pytest.mark.usefixtures("cores")
def test_more_engines_than_cores_are_refused() -> None:
    with pytest.raises(ValueError, match="9 engines: there are 8 cores"):
        placement.on_cores(9, 1, threads_given=False)


def test_gpus_by_number_or_id() -> None:
    placed = placement.on_gpus(2, 2, ["0", "3", "GPU-a", "GPU-b"])
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in placed] == ["0,3", "GPU-a,GPU-b"]
    with pytest.raises(ValueError, match="3 engines of 2 GPUs each: 6 are needed, and 4"):
        placement.on_gpus(3, 2, ["0", "1", "2", "3"])


def test_visible_gpus_are_those_of_the_variable() -> None:
    assert placement.visible_gpus({"CUDA_VISIBLE_DEVICES": "1, 2"}) == ["1", "2"]
    assert placement.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_lists_of_cores_are_read_as_the_kernel_writes_them() -> None:
    assert placement._cores_of("0-2,8\n") == {0, 1, 2, 8}
