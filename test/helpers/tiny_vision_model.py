"""A tiny Gemma 3 with random weights, which sees images; and small images to show it."""

from __future__ import annotations

import io
from base64 import b64encode
from pathlib import Path

import numpy as np

TOKENS_AN_IMAGE = 4
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<start_of_image>{% elif c.type == 'text' %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_vision_model(folder: Path, tokenizer_of: Path) -> Path:
    """Write a model with the tokenizer of another one into a folder; return the folder."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import (
        AutoTokenizer,
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
    )

    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    names["image_token"] = "<image_soft_token>"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of, extra_special_tokens=names)
    tokenizer.chat_template = _TEMPLATE
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = Gemma3Processor(
        images, tokenizer, chat_template=_TEMPLATE, image_seq_length=TOKENS_AN_IMAGE
    )
    processor.save_pretrained(folder)
    boi, eoi, image = (tokenizer.convert_tokens_to_ids(name) for name in names.values())
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = Gemma3Config(
        text_config={
            **sizes,
            "vocab_size": len(tokenizer),
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "sliding_window": 4096,
            "layer_types": ["full_attention"] * 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
        vision_config={**sizes, "num_attention_heads": 4, "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=TOKENS_AN_IMAGE,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=image,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).float()
    with torch.no_grad():  # so large that answers differ from image to image
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=1.0)
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    # transformers 5 calls the vision tower's weights otherwise than SGLang, and has a head more.
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in load_file(weights).items()
        if "vision_tower.head" not in name
    }
    save_file(renamed, weights, {"format": "pt"})
    return folder


def png(number: int, width: int = 60, height: int = 40) -> bytes:
    """An image of a number."""
    from PIL import Image

    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    # Blocks of one colour, of which something is left when it is made smaller.
    pixels[:, : width // 2] = (number * 83 % 256, number * 151 % 256, number * 29 % 256)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_address(data: bytes, kind: str = "image/png") -> str:
    """The ``data:`` address of a file's content."""
    return f"data:{kind};base64,{b64encode(data).decode()}"
