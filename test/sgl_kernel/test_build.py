"""What happens where the extension is absent or was built for another CPU."""

from __future__ import annotations

import json
import warnings

import pytest

from sgl_kernel import native


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The loader as in a new process, with a CPU and a build record of the test's own."""
    record, cpuinfo = tmp_path / "native_isa.json", tmp_path / "cpuinfo"
    record.write_text(json.dumps(["avx2", "fma"]))
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu sse2 avx2 fma\n")
    monkeypatch.setattr(native, "_RECORD", record)
    monkeypatch.setattr(native, "_CPUINFO", cpuinfo)
    native.load.cache_clear()
    yield record
    native.load.cache_clear()


def test_a_cpu_that_lacks_an_instruction_set_gets_the_torch_fallback(fresh):
    fresh.write_text(json.dumps(["avx2", "avx512_bf16"]))
    extension, reason = native.load()
    assert extension is None
    assert "avx512_bf16, which this one lacks" in reason


def test_a_fitting_cpu_reports_nothing_missing(fresh):
    assert native.missing_features() == []


def test_the_fallback_is_said_loudly_and_says_what_to_install(fresh):
    fresh.write_text(json.dumps(["an_unknown_feature"]))
    with pytest.warns(RuntimeWarning, match=r"plain torch.*apt-get install g\+\+"):
        native.warn_if_absent()


@pytest.mark.skipif(native.load()[0] is None, reason="no compiled kernels")
def test_no_warning_where_the_kernels_are_there():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        native.warn_if_absent()
