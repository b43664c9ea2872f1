"""What the module promises SGLang: its names, a cheap import, refusals that say why."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import sgl_kernel


@pytest.mark.parametrize("name", [n for n in sgl_kernel.__all__ if not n.startswith("_")])
def test_every_public_name_is_a_documented_function(name):
    function = getattr(sgl_kernel, name)
    assert callable(function)
    assert function.__doc__


def test_sglang_sees_no_amx_build():
    assert not hasattr(torch.ops.sgl_kernel, "convert_weight_packed")


def test_importing_the_module_does_not_import_torch():
    code = "import sys, sgl_kernel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gpu_names_are_refused_by_name():
    assert not hasattr(sgl_kernel, "fp8_scaled_mm")
    with pytest.raises(AttributeError, match=r"sgl_kernel\.fp8_scaled_mm .* on the CPU"):
        _ = sgl_kernel.fp8_scaled_mm


def test_linear_attention_is_refused():
    with pytest.raises(ImportError, match="linear-attention models"):
        import sgl_kernel.mamba  # noqa: F401


def test_the_amx_draft_backend_is_refused():
    with pytest.raises(NotImplementedError, match="intel_amx"):
        sgl_kernel.build_draft_decode_metadata_cpu()
