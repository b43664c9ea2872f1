"""LoRA adapters with random weights for `tiny_model`."""

from __future__ import annotations

import json
from pathlib import Path

RANK = 4


def write_adapter(folder: Path, model: Path, seed: int) -> Path:
    """Write an adapter of the model in ``model`` to ``folder`` and return it.

    It changes the output and down projections strongly enough that greedy answers differ.
    """
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    inner = {
        "self_attn.o_proj": heads * (config.get("head_dim") or hidden // heads),
        "mlp.down_proj": config["intermediate_size"],
    }
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in inner.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{key}.lora_A.weight"] = 0.2 * torch.randn(RANK, width, generator=random)
            weights[f"{key}.lora_B.weight"] = 0.2 * torch.randn(hidden, RANK, generator=random)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [name.rpartition(".")[2] for name in inner],
        "base_model_name_or_path": str(model),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
