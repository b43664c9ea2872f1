"""Build of the C++ kernels; everything else stands in pyproject.toml.

The kernels are compiled for the CPU the build runs on (``-march=native``; the environment variable
``SGL_KERNEL_MARCH`` names another one, e.g. ``x86-64-v3`` for a wheel that travels). Without a
working C++ compiler the package installs all the same and computes attention in torch, which it
says at run time, because pip hides what a successful build prints.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

RED, PLAIN = "\033[31m", "\033[0m"
MARCH = f"-march={os.environ.get('SGL_KERNEL_MARCH', 'native')}"
FLAGS = [
    MARCH,
    "-O3",
    "-g0",
    "-std=c++20",  # what torch 2.14's headers need
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
    "-Wno-maybe-uninitialized",  # GCC bug 105593: false alarms from its own AVX-512 headers
]
FEATURES = {
    "__AVX2__": "avx2",
    "__FMA__": "fma",
    "__F16C__": "f16c",
    "__AVX512F__": "avx512f",
    "__AVX512BW__": "avx512bw",
    "__AVX512VL__": "avx512vl",
    "__AVX512DQ__": "avx512dq",
    "__AVX512BF16__": "avx512_bf16",
}
"""Compiler macro -> name in /proc/cpuinfo of the instruction sets the kernels make use of."""


def record_features() -> None:
    """Write the instruction sets the build will use, for the check before it is loaded.

    This stands before the build, because setuptools collects a package's data files first.
    """
    command = [os.environ.get("CXX", "c++"), MARCH, "-dM", "-E", "-x", "c++", os.devnull]
    try:
        macros = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{RED}sgl_kernel: no C++ compiler that takes {MARCH}: {error}{PLAIN}", flush=True)
        return
    needed = sorted(name for macro, name in FEATURES.items() if macro in macros)
    record = Path(__file__).parent / "python" / "sgl_kernel" / "native_isa.json"
    record.write_text(json.dumps(needed) + "\n")


class Build(BuildExtension):
    """Builds the extension; when that fails for any reason, the package does without."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # compilers fail in many ways; all end in the torch fallback
            print(f"{RED}sgl_kernel: the C++ kernels were not built: {error}{PLAIN}", flush=True)


record_features()
setup(
    ext_modules=[
        CppExtension(
            "sgl_kernel._native",
            [f"csrc/{name}.cpp" for name in ("bindings", "attention", "elementwise", "linear")],
            depends=[
                f"csrc/{name}.h"
                for name in ("kernels", "simd", "registers", "attention_rows", "attention_tile")
            ],
            extra_compile_args=FLAGS,
            extra_link_args=["-fopenmp", "-s"],
        )
    ],
    cmdclass={"build_ext": Build},
)
