"""`benchmark/clients/run.py` without clients: each is pinned, and each trouble becomes a row.

The clients themselves run outside CI, because they are installed from the registries.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmark" / "clients"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clients_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_each_client_is_pinned_with_all_that_it_needs(script: ModuleType) -> None:
    for client in script.CLIENTS:
        assert (FOLDER / client.script).is_file()
        lock = FOLDER / "locks" / client.name
        if lock.is_dir():
            pins = json.loads((lock / "package.json").read_text())["dependencies"].values()
            assert all(re.fullmatch(r"[\d.]+", pin) for pin in pins)
            assert (lock / "package-lock.json").is_file()
        else:
            lines = Path(f"{lock}.txt").read_text().splitlines()
            assert lines
            assert all(re.match(r"[\w.\[\]-]+==[\w.+]+( ;|$)", line) for line in lines)


@pytest.mark.parametrize("client", ["openai_python", "openai_node"])
def test_what_cannot_be_installed_says_why(
    script: ModuleType, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "HERE", tmp_path)  # without locks
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    (chosen,) = [one for one in script.CLIENTS if one.name == client]
    with pytest.raises(script.CannotInstallError, match=r"npm is not installed|openai_python\.txt"):
        script.install(chosen, tmp_path / "environment")


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("print('started'); raise SystemExit(3)", "no report; exit status 3"),
        ("", "no report; exit status 0"),
        ("import time; time.sleep(60)", "no end after 5 s"),
        ('print(\'{"failure": "it | says so"}\')', "it | says so"),
    ],
)
def test_a_client_that_fails_is_a_row(
    script: ModuleType, code: str, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "SECONDS", 5.0)
    client = script.CLIENTS[0]
    row = script.run_client(client, [sys.executable, "-c", code], {"HOME": str(tmp_path)})
    assert (row.client, row.failure) == (client.package, failure)
    (line,) = script.table([row]).splitlines()[2:]
    assert "| fails: " + failure.replace("|", "\\|") in line


def test_a_client_that_reports_is_a_row(script: ModuleType, tmp_path: Path) -> None:
    report = {"version": "1.2", "steps": ["upload", "wait"], "answers": 4, "errors": 1, "note": "n"}
    code = f"print('noise'); print({json.dumps(report)!r})"
    client = script.CLIENTS[0]
    row = script.run_client(client, [sys.executable, "-c", code], {"HOME": str(tmp_path)})
    (line,) = script.table([row]).splitlines()[2:]
    assert line == f"| {client.package} | 1.2 | upload, wait | 4, 1 | ok | n |"
