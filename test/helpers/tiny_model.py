"""A tiny Llama with random weights and SmolLM2's tokenizer: the real engine, quick to run.

Random weights give arbitrary but repeatable greedy answers, which is what tests of scheduling
compare. Its head counts divide by two, so it also runs on two tensor parallel ranks.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def write_tiny_model(folder: Path, tokenizer_from: Path) -> Path:
    """Write the model to ``folder`` and return it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer_from / name).exists():
            shutil.copy(tokenizer_from / name, folder / name)
    return folder
