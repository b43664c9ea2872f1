"""What the token ids of a store depend on, besides the input: an equal fingerprint, equal ids."""

from __future__ import annotations

import json
import os
from datetime import date
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.blendserve.answering.media_rules import MediaRules

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_PACKAGES = (
    "sglang",
    "sglang-blendserve",
    "transformers",
    "tokenizers",
    "jinja2",
    "mistral_common",
    "tiktoken",
)

_SETTINGS = (
    *("model_path", "tokenizer_path", "tokenizer_mode", "tokenizer_backend", "trust_remote_code"),
    *("revision", "chat_template", "completion_template", "default_chat_template_kwargs"),
    *("trust_request_chat_template", "reasoning_parser", "tool_call_parser", "grammar_backend"),
    *("context_length", "allow_auto_truncate", "json_model_override_args", "is_embedding"),
    *("served_model_name", "preferred_sampling_params", "sampling_defaults", "load_format"),
    *("skip_tokenizer_init", "enable_multimodal", "language_model_only", "mm_process_config"),
)
"""Server arguments that SGLang renders, tokenizes, caps or refuses by."""

_TEMPLATES = ("tokenizer_config.json", "*.jinja", "chat_template*", "additional_chat_templates/*")

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".h5", ".msgpack", ".onnx")
_LARGEST = 1 << 28
"""Files of a model folder with more bytes hold weights."""


def model_fingerprint(server_args: ServerArgs) -> dict[str, str]:
    """Return what an engine with these settings makes of a line, as digests and versions.

    Reads the small files of the model's folder, and of the tokenizer's and the chat template's.
    """
    from sglang.srt.blendserve.runtime.compat.server_args import release

    fields = release.view(server_args)
    settings = {name: _plain(getattr(fields, name, None)) for name in _SETTINGS}
    found = {f"version of {name}": _version(name) for name in _PACKAGES}
    settings["media"] = str(MediaRules.of(server_args))
    found["settings"] = _digest(json.dumps(settings, sort_keys=True, default=str).encode())
    for name in ("model_path", "tokenizer_path", "chat_template", "completion_template"):
        path = settings[name]
        if isinstance(path, str) and os.path.exists(path):
            found[name] = _digest_of_files(Path(path))
    if _names_the_date(settings):
        found["date"] = date.today().isoformat()
    return found


def _names_the_date(settings: dict[str, Any]) -> bool:
    """Whether a chat template may write today's date into a prompt."""
    for name in ("model_path", "tokenizer_path", "chat_template"):
        path = settings[name]
        if not isinstance(path, str) or not os.path.exists(path):
            continue
        there = Path(path)
        files = [one for p in _TEMPLATES for one in there.glob(p)] if there.is_dir() else [there]
        if any(b"strftime_now" in one.read_bytes() for one in files if one.is_file()):
            return True
    return False


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else str(value)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _digest_of_files(path: Path) -> str:
    """Return a digest of a file, or of the files of a folder that are no weights."""
    digest = blake2b(digest_size=16)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode())
        if file.suffix not in _WEIGHTS and size <= _LARGEST:
            digest.update(file.read_bytes())
    return digest.hexdigest()
