"""A store is made by real worker processes, whatever happens to them.

pytest test/requests/test_preparation.py
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sglang.srt.blendserve.batch_file.types import BatchFileError, ErrorCode
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.requests import preparation as preparations
from sglang.srt.blendserve.requests import workers
from sglang.srt.blendserve.requests.disk_budget import NoRoom
from sglang.srt.blendserve.requests.engine_settings import engine_settings
from sglang.srt.blendserve.requests.inputs import PlainFile, Stream
from sglang.srt.blendserve.requests.preparation import Preparation
from sglang.srt.blendserve.requests.recorder import PreparationStopped
from sglang.srt.blendserve.requests.request_store import SEAL_FILE, RequestStore

HELPERS = Path(__file__).parents[1] / "helpers"

ENDLESS = """\
{%- if messages[0].content == "endless" -%}
{%- for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor -%}
{%- endif -%}
{{ messages[0].content }}"""


def request(index: int, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    """A line; without a body its prompt is the token ids 10 to ``index`` modulo 1000."""
    given = body or {"prompt": list(range(10, 12 + index % 1000)), "max_tokens": 1 + index % 50}
    return {"custom_id": str(index), "method": "POST", "url": url, "body": given}


def write(path: Path, lines: list[Any]) -> None:
    """Write a file of lines."""
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )


def check(store: RequestStore, count: int) -> None:
    """Every line of `request` is there once, with its own tokens and cap."""
    columns = store.columns()
    assert sorted(columns["line"].tolist()) == list(range(1, count + 1))
    for row in range(count):
        index = int(columns["line"][row]) - 1
        assert store.tokens(row).tolist() == list(range(10, 12 + index % 1000))
        assert columns["cap"][row] == 1 + index % 50
    assert store.usable().size == count
    assert store.errors() == {}


@pytest.fixture(scope="module")
def settings(tiny_model: Path) -> Any:
    """An engine's settings."""
    return engine_settings(str(tiny_model))


@pytest.mark.engine
def test_a_store_survives_what_kills_its_makers(
    tmp_path: Path, tiny_model: Path, settings: Any
) -> None:
    source, folder, count = tmp_path / "in.jsonl", tmp_path / "store", 3000
    write(source, [request(index) for index in range(count)])
    command = [sys.executable, str(HELPERS / "prepare_run.py"), str(tiny_model)]
    made = subprocess.Popen([*command, str(source), str(folder)], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    ids = [int(one) for one in made.stdout.readline().split()]
    made.kill()
    made.wait()
    assert len(ids) == 2, "it was whole before it could be killed"
    assert not (folder / SEAL_FILE).exists()
    deadline = time.monotonic() + 60
    while any(map(is_running, ids)):  # they notice that nobody is there
        assert time.monotonic() < deadline
        time.sleep(0.1)

    with Preparation(folder, PlainFile(str(source)), settings, Rules(), workers=2) as making:
        making.begin()
        assert making.made, "a torn store counts as whole"
        while not making.store.ready:
            assert not making.wait(0.01)
        os.kill(making.process_ids[0], signal.SIGKILL)
        assert making.wait()
        check(making.store, count)
        assert making.lines == making.found.lines == count
        # The first lines are from all over the file.
        assert np.ptp(making.store.column("line")[: count // 5]) > count / 2

    with Preparation(folder, PlainFile(str(source)), settings, Rules()) as again:
        again.begin()
        assert not again.made
        assert again.process_ids == []
        assert again.wait()
        check(again.store, count)
    write(source, [request(index) for index in range(count - 1)])
    other = Preparation(folder, PlainFile(str(source)), settings, Rules(), workers=1)
    other.begin()
    assert other.made, "a store of another input was taken"
    other.close()
    with pytest.raises(PreparationStopped):
        other.wait()
    assert not (folder / SEAL_FILE).exists()


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.engine
def test_a_bad_line_is_nobody_else_s(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text(ENDLESS)
    settings = engine_settings(str(tiny_model), ["--chat-template", str(template)])
    monkeypatch.setattr(workers, "CPU_SECONDS", 3.0)
    chat = "/v1/chat/completions"
    lines = [
        request(0),
        "{",
        "",
        request(2, prompt=[1 << 20]),
        request(3, chat, messages=[{"role": "user", "content": "endless"}], max_tokens=7),
        request(4, prompt=["a", "b c"], n=3, cache_salt="salt"),
        request(0, prompt="again"),
        request(5, chat, messages=[{"role": "user", "content": "fine " * 30}], ignore_eos=True),
        request(6, chat, messages=[]),
    ]
    source = tmp_path / "in.jsonl.gz"
    source.write_bytes(
        gzip.compress("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines).encode())
    )

    def unpacked() -> AbstractContextManager[Any]:
        return gzip.open(source)

    stream = Stream(unpacked, "gzip")
    assert stream.in_order_because is not None
    assert stream.in_order_because.startswith("gzip is ")
    with Preparation(tmp_path / "store", stream, settings, Rules(), workers=1) as making:
        making.begin()
        assert making.wait()
        store = making.store
        columns = {name: column.tolist() for name, column in store.columns().items()}
        errors = store.errors()
        usable = {columns["line"][row] for row in store.usable()}
        tokens = dict(zip(columns["line"], map(store.tokens, range(store.ready)), strict=True))
        namespaces = [store.names("namespace")[number] for number in columns["namespace"]]
    assert columns["line"] == [1, 2, 4, 5, 6, 6, 7, 8, 9]
    assert usable == {1, 5, 6, 8}
    assert {line: error.code for line, error in errors.items()} == {
        2: ErrorCode.INVALID_JSON_LINE,
        4: ErrorCode.INVALID_VALUE,
        7: ErrorCode.DUPLICATE_CUSTOM_ID,
        9: ErrorCode.INVALID_VALUE,
    }
    assert errors[4].custom_id == "2"
    assert "Token id 1048576 does not exist" in errors[4].message
    # The line without an end is left to the engine, with an estimated length.
    row = columns["line"].index(5)
    assert columns["flags"][row] == 0
    assert tokens[5].size == 0
    assert columns["length"][row] > 0
    assert columns["prompt"][4:6] == [0, 1]
    assert columns["choices"][4:6] == [3, 3]
    assert namespaces[4] == namespaces[5] != namespaces[0] == ""
    assert tokens[8].size > 30
    assert columns["known"][columns["line"].index(8)] == -1


def test_an_input_as_a_whole_is_refused_first(
    tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = tmp_path / "in.jsonl", tmp_path / "store"
    monkeypatch.setattr(preparations, "Workers", lambda *_: NoWorkers())

    def begin(rules: Rules) -> ErrorCode:
        with pytest.raises(BatchFileError) as refused:
            Preparation(folder, PlainFile(str(source)), settings, rules).begin()
        return refused.value.error.code

    source.write_text("\n \n")
    assert begin(Rules()) == ErrorCode.EMPTY_FILE
    write(source, [request(index) for index in range(3)])
    assert begin(Rules(max_lines=2)) == ErrorCode.TOO_MANY_TASKS
    assert begin(Rules(max_bytes=20)) == ErrorCode.FILE_TOO_LARGE
    monkeypatch.setattr("shutil.disk_usage", lambda _: Disk())
    making = Preparation(folder, PlainFile(str(source)), settings, Rules(), mend="Use --there.")
    with pytest.raises(NoRoom, match=f"{folder} has 0.0 MB left. Use --there."):
        making.begin()
    assert not folder.exists()


class Disk:
    """A full one."""

    free = 1


class NoWorkers:
    """Stands for processes that nobody needs here."""

    process_ids: tuple[int, ...] = ()

    def close(self) -> None:
        """Nothing to do."""
