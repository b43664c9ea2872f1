"""The registration of blend_cpu, its refusals, and its default."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang.srt.blendserve.runtime.cpu.attention import (
    BACKEND,
    FALLBACK,
    create_backend,
    default_cpu_backend,
)


def _config(**changes):
    from sglang.srt.configs.model_config import AttentionArch

    plain = {
        "attention_arch": AttentionArch.MHA,
        "is_encoder_decoder": False,
        "is_hybrid_swa": False,
        "has_attention_sinks": False,
        "attention_chunk_size": None,
        "hf_text_config": SimpleNamespace(),
    }
    return SimpleNamespace(**{**plain, **changes})


def test_plain_attention_gets_our_backend():
    assert default_cpu_backend(_config()) == BACKEND


@pytest.mark.parametrize(
    "changes",
    [
        {"is_encoder_decoder": True},
        {"is_hybrid_swa": True},
        {"has_attention_sinks": True},
        {"attention_chunk_size": 8192},
        {"hf_text_config": SimpleNamespace(attn_logit_softcapping=50.0)},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_attention_keeps_sglangs(changes):
    assert default_cpu_backend(_config(**changes)) == FALLBACK


def test_mla_keeps_sglangs():
    from sglang.srt.configs.model_config import AttentionArch

    assert default_cpu_backend(_config(attention_arch=AttentionArch.MLA)) == FALLBACK


def _runner(layer=None, *, pool_dtype=torch.bfloat16, **changes):
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    pool = MHATokenToKVPool.__new__(MHATokenToKVPool)
    pool.kv_cache_layout, pool.dtype = "nhd", pool_dtype
    attention = RadixAttention(**{"num_heads": 4, "head_dim": 64, "scaling": 0.125,
                                  "num_kv_heads": 2, "layer_id": 0, **(layer or {})})  # fmt: skip
    plain = {
        "device": "cpu",
        "use_mla_backend": False,
        "dtype": torch.bfloat16,
        "model": torch.nn.ModuleList([attention]),
        "model_config": _config(),
        "token_to_kv_pool": pool,
        "server_args": SimpleNamespace(speculative_algorithm=None, enable_torch_compile=False),
    }
    return SimpleNamespace(**{**plain, **changes})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"layer": {"sliding_window_size": 1023}}, "a window of 1023"),
        ({"layer": {"logit_cap": 30.0}}, "soft-cap"),
        ({"layer": {"is_cross_attention": True}}, "cross-attention"),
        ({"layer": {"head_dim": 320}}, "head size of 320"),
        ({"layer": {"use_irope": True}}, "iRoPE"),
        ({"use_mla_backend": True}, "MLA"),
        ({"pool_dtype": torch.float8_e5m2}, "float8"),
        ({"dtype": torch.float32}, "under a model of torch.float32"),
        (
            {"server_args": SimpleNamespace(speculative_algorithm="NGRAM")},
            "speculative decoding",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_not_supported_is_refused_with_the_way_out(arguments, reason):
    with pytest.raises(ValueError, match=rf"{reason}.*use --attention-backend torch_native"):
        create_backend(_runner(**arguments))
