"""Model sizes from Hugging Face configs. Run: pytest test/cost/test_model_spec.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang.srt.blendserve.cost.model_config import ConfigError
from sglang.srt.blendserve.cost.model_spec import ModelSpec, known_models

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

# Exact parameter counts as the model cards and their checkpoints have them.
PUBLISHED = {
    "Llama-2-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.2-1B": 1_235_814_400,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mixtral-8x7B": 46_702_792_704,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-30B-A3B": 30_532_122_624,
    "Gemma-2-9B": 9_241_705_984,
    "DeepSeek-67B": 67_425_001_472,
    "DeepSeek-V2-Lite": 15_706_484_224,
    "DeepSeek-V3": 671_026_404_352,
    "SmolLM2-135M": 134_515_008,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    assert ModelSpec.named(name).parameters == parameters


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("Mixtral-8x7B", 12.9e9),
        ("DeepSeek-V2-Lite", 2.4e9),
        ("DeepSeek-V3", 37e9),
        ("Qwen3-30B-A3B", 3.3e9),
    ],
)
def test_active_parameters_of_experts(name: str, active: float) -> None:
    spec = ModelSpec.named(name)
    # Publishers differ in whether the looked-up embedding counts as active: allow both.
    both = (spec.active_parameters, spec.active_parameters + spec.embedding_parameters)
    assert min(abs(value / active - 1) for value in both) < 0.03
    assert spec.active_parameters < spec.parameters / 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-2-7B", 2 * 32 * 128 * 2 * 32),  # multi-head
        ("Llama-3.1-8B", 2 * 8 * 128 * 2 * 32),  # grouped
        ("DeepSeek-V2-Lite", (512 + 64) * 2 * 27),  # latent: one vector and one rotary key
        ("SmolLM2-135M", 2 * 3 * 64 * 2 * 30),
    ],
)
def test_kv_bytes_per_token(name: str, expected: int) -> None:
    assert ModelSpec.named(name).kv_bytes_per_token == expected


def test_multi_query_attention_has_one_kv_head() -> None:
    spec = ModelSpec.from_config({**LLAMA, "multi_query": True}, name="m")
    assert spec.kv_bytes_per_token == 2 * 1 * 128 * 2 * 32


def test_kv_dtype_scales_the_cache_alone() -> None:
    half = ModelSpec.named("Llama-3.1-8B", kv_dtype_bytes=1)
    full = ModelSpec.named("Llama-3.1-8B")
    assert half.kv_bytes_per_token * 2 == full.kv_bytes_per_token
    assert half.weight_bytes == full.weight_bytes


def test_names_are_found_in_any_case_and_unknown_ones_list_the_known() -> None:
    assert ModelSpec.named("llama-3.1-8b") == ModelSpec.named("Llama-3.1-8B")
    assert set(PUBLISHED) <= set(known_models())
    with pytest.raises(ValueError, match=r"'gpt-5'.*Llama-3\.1-8B"):
        ModelSpec.named("gpt-5")


def test_every_known_model_can_be_read() -> None:
    for name in known_models():
        spec = ModelSpec.named(name)
        assert spec.name == name
        assert spec.context_length >= 4096
        assert spec.weight_bytes == 2 * spec.parameters


def test_language_model_inside_a_larger_config() -> None:
    outer = {"model_type": "llava", "text_config": LLAMA, "vision_config": {"hidden_size": 1024}}
    assert ModelSpec.from_config(outer, name="m").parameters == PUBLISHED["Llama-3.1-8B"]


def test_tied_embeddings_count_once_and_are_multiplied() -> None:
    tied = ModelSpec.from_config({**LLAMA, "tie_word_embeddings": True}, name="m")
    free = ModelSpec.from_config(LLAMA, name="m")
    assert free.parameters - tied.parameters == 4096 * 128256
    assert tied.active_parameters == free.active_parameters
    assert tied.embedding_parameters == 0


@pytest.mark.parametrize(
    "field",
    ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size"],
)
def test_missing_field_is_named_with_the_file(field: str, tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA.items() if key != field}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"config\.json.*'{field}'"):
        ModelSpec.from_folder(tmp_path)


@pytest.mark.parametrize("value", [0, -1, "many", 3.5, True])
def test_wrong_value_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        ModelSpec.from_config({**LLAMA, "num_hidden_layers": value}, name="m")


def test_folder_without_a_readable_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        ModelSpec.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        ModelSpec.from_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="JSON object"):
        ModelSpec.from_folder(tmp_path)


def test_folder_takes_weight_bytes_from_the_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x" * 500)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * 1500)  # the same weights again
    assert ModelSpec.from_folder(tmp_path).weight_bytes == 1500


def test_quantised_weights_are_smaller() -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "awq", "bits": 4}}
    quantised = ModelSpec.from_config(config, name="m")
    embeddings = 2 * 4096 * 128256
    linear = PUBLISHED["Llama-3.1-8B"] - embeddings
    assert quantised.weight_bytes == linear / 2 + embeddings * 2


def test_a_step_reads_the_experts_its_tokens_are_sent_to() -> None:
    spec = ModelSpec.named("Mixtral-8x7B")
    nothing, one, many = spec.weight_bytes_read([0, 1, 10_000])
    assert nothing == 0
    assert one == pytest.approx(2 * spec.active_parameters)
    assert many == pytest.approx(2 * (spec.parameters - spec.embedding_parameters))
    two = float(spec.weight_bytes_read(2))
    dense = spec.parameters - spec.embedding_parameters - spec.expert_parameters
    assert two == pytest.approx(2 * (dense + spec.expert_parameters * (1 - 0.75**2)))


def test_a_dense_model_reads_all_weights_each_step() -> None:
    spec = ModelSpec.named("Llama-3.1-8B")
    np.testing.assert_allclose(
        spec.weight_bytes_read([1, 100]), 2 * (spec.parameters - spec.embedding_parameters)
    )
