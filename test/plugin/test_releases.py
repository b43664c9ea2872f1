"""Which versions of SGLang count as a release that we work with.

pytest test/plugin/test_releases.py
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from sglang.srt.blendserve import cli, releases
from sglang.srt.blendserve.refusals import Refusal, as_exit


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("0.5.17", "0.5.17"),
        ("0.5.23", "0.5.23"),
        ("0.5.23.post1", "0.5.23"),
        ("0.5.23+cu130", "0.5.23"),
        ("0.5.23rc1", "0.5.23"),
        ("0.5.23.dev12+g0123456.d20261128", "0.5.23"),
        ("0.5.18", None),
        ("0.5.22.post2", None),
        ("0.5.24.dev1+g0123456", None),
        ("0.0.0.dev1+g0123456", None),
        ("main", None),
    ],
)
def test_a_version_counts_as_the_release_before_its_suffixes(
    version: str, release: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "version", lambda _: version)
    assert releases.found() == version
    assert releases.supported() == release
    if release is not None:
        assert releases.require() == release
        return
    with pytest.raises(Refusal, match=f"and found {version}".replace("+", "[+]")) as refused:
        releases.require()
    assert "\n" not in str(refused.value)


def test_without_sglang_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(releases, "version", version)
    with pytest.raises(SystemExit) as ended, as_exit():
        releases.require()
    assert ended.value.code == 2
    assert "and found none: run `pip install sglang==0.5.23`" in capsys.readouterr().err


def test_the_version_names_the_sglang_found(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert f"found: sglang {releases.found()}" in capsys.readouterr().out
