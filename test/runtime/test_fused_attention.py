"""One attention kernel in mixed steps: what it is handed, against attention request by request.

The kernel itself needs a GPU; `mixed_kernel` stands for it. ``benchmark/gpu/check_attention.py``
checks the real one on a card.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import mixed_kernel
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.blendserve.runtime.fused.attention import BACKEND, create_backend
from sglang.srt.blendserve.runtime.fused.mixed_batch import FusedAttention, MixedBatch, is_mixed

HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 64, 0.3
DTYPE = torch.bfloat16
SHAPE = (HEADS, KV_HEADS, SIZE, SCALE)


@pytest.mark.parametrize(
    ("new", "cached", "mixed"),
    [
        ([5, 1, 1], [0, 9, 3], True),
        ([1, 7], [4, 30], True),
        ([1, 1], [4, 2], False),  # as decodes alone
        ([5, 3], [0, 8], False),
        ([5, 1], [0, 0], False),  # a prompt of one token
        ([], [], False),
    ],
)
def test_a_mixed_step_is_known_by_its_rows(new: list[int], cached: list[int], mixed: bool) -> None:
    assert is_mixed(new, cached) is mixed


Requests = list[tuple[int, int]]


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=6),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_a_mixed_step_attends_as_its_requests_do(
    requests: Requests, padding: int, seed: int
) -> None:
    step = Step(requests, seed)
    fused = FusedAttention(mixed_kernel.BatchAttention(), SHAPE, torch.float32)
    total = sum(new + cached for new, cached in requests)
    fused.plan(MixedBatch.of(step.table, step.rows, step.lengths, step.new, total), len(step.q))
    # A CUDA graph's step has more rows than the batch.
    q = torch.cat([step.q, torch.full((padding, HEADS * SIZE), 7.0)])
    out = fused.run(q, step.keys, step.values)
    assert out.shape == q.shape
    torch.testing.assert_close(out[: len(step.q)], step.expected())
    assert not out[len(step.q) :].any()


class Step:
    """Requests in a pool of slots that lie anywhere."""

    def __init__(self, requests: Requests, seed: int) -> None:
        """``requests``: new and cached tokens of each."""
        torch.manual_seed(seed)
        self.requests = requests
        self.new = torch.tensor([new for new, _ in requests])
        self.lengths = torch.tensor([sum(one) for one in requests])
        slots = 200
        self.keys, self.values = torch.randn(2, slots, KV_HEADS, SIZE)
        self.q = torch.randn(int(self.new.sum()), HEADS * SIZE)
        self.rows = torch.randperm(8)[: len(requests)]
        self.table = torch.full((8, 40), -1, dtype=torch.int32)
        free = torch.randperm(slots).split(
            [*self.lengths.tolist(), slots - int(self.lengths.sum())]
        )
        for row, own in zip(self.rows.tolist(), free, strict=False):
            self.table[row, : own.numel()] = own

    def expected(self) -> torch.Tensor:
        """What each request attends to, one after the other."""
        parts = []
        for row, q in zip(self.rows.tolist(), self.q.split(self.new.tolist()), strict=True):
            own = self.table[row]
            own = own[own >= 0].long()
            q = q.view(-1, HEADS, SIZE)
            parts.append(mixed_kernel.attend(q, self.keys[own], self.values[own], SCALE).flatten(1))
        return torch.cat(parts)


@pytest.fixture
def backend_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The backend on top of SGLang's, whose own kernels are not there without a GPU."""
    module = "sglang.srt.blendserve.runtime.fused.attention_backend"
    there = ModuleType("flashinfer")
    there.BatchAttention = mixed_kernel.BatchAttention  # type: ignore[attr-defined]
    from sglang.srt.layers.attention import flashinfer_backend

    on_a_gpu(monkeypatch)
    monkeypatch.setattr(flashinfer_backend.FlashInferAttnBackend, "__init__", stock_init)
    for name in ("init_forward_metadata", "init_forward_metadata_out_graph", "forward_extend"):
        monkeypatch.setattr(flashinfer_backend.FlashInferAttnBackend, name, stock(name))
    monkeypatch.setitem(sys.modules, "flashinfer", there)
    monkeypatch.delitem(sys.modules, module, raising=False)
    yield importlib.import_module(module).FusedFlashInfer
    sys.modules.pop(module, None)


def on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), sms: int = 132
) -> None:
    """What torch says of a card."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    properties = SimpleNamespace(multi_processor_count=sms)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)


def test_sglang_calls_its_backend_as_ours_expects() -> None:
    from sglang.srt.layers.attention.flashinfer_backend import FlashInferAttnBackend

    def names(method: str) -> list[str]:
        return list(inspect.signature(getattr(FlashInferAttnBackend, method)).parameters)

    assert {"model_runner", "init_new_workspace"} <= set(names("__init__"))
    assert names("init_forward_metadata") == ["self", "forward_batch"]
    assert names("init_forward_metadata_out_graph")[:2] == ["self", "forward_batch"]
    expected = ["self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache"]
    assert names("forward_extend")[:7] == expected


def stock_init(self: Any, runner: Any, **_: Any) -> None:
    self.req_to_token_pool, self.token_to_kv_pool = runner.req_to_token_pool, runner.pool
    self.stock_calls = []


def stock(name: str) -> Any:
    return lambda self, *_, **__: self.stock_calls.append(name)


class Pool:
    """A KV pool of one layer."""

    def __init__(self, step: Step) -> None:
        self.buffers = step.keys.to(DTYPE), step.values.to(DTYPE)

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        for buffer, rows in zip(self.buffers, (k, v), strict=True):
            buffer[where.loc] = rows.view(-1, KV_HEADS, SIZE).to(DTYPE)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.buffers[0]

    def get_kv_buffer(self, layer_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.buffers


def layer_of(**more: Any) -> Any:
    from sglang.srt.layers.radix_attention import RadixAttention

    return RadixAttention(**{"num_heads": HEADS, "head_dim": SIZE, "scaling": SCALE,
                             "num_kv_heads": KV_HEADS, "layer_id": 0, **more})  # fmt: skip


def arguments_of(**more: Any) -> Any:
    plain = {
        "speculative_algorithm": None,
        "enable_pdmux": False,
        "enable_deterministic_inference": False,
    }
    return SimpleNamespace(**{**plain, **more})


def runner_of(step: Step | None = None, layers: Any = None, **more: Any) -> Any:
    pool = Pool(step or Step([(1, 1)], 1))
    plain = {
        "device": "cuda",
        "use_mla_backend": False,
        "dtype": DTYPE,
        "kv_cache_dtype": DTYPE,
        "init_new_workspace": False,
        "model": torch.nn.ModuleList(layers or [layer_of()]),
        "model_config": SimpleNamespace(is_encoder_decoder=False),
        "server_args": arguments_of(),
        "req_to_token_pool": SimpleNamespace(req_to_token=step.table if step else None),
        "pool": pool,
        "token_to_kv_pool": pool,
    }
    return SimpleNamespace(**{**plain, **more})


def batch_of(step: Step, **more: Any) -> Any:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    ends = zip(step.rows.tolist(), step.requests, strict=True)
    new_slots = [step.table[row, cached : cached + new] for row, (new, cached) in ends]
    plain = {
        # SGLang's runners call a mixed step so.
        "forward_mode": ForwardMode.EXTEND,
        "spec_info": None,
        "extend_seq_lens_cpu": [new for new, _ in step.requests],
        "extend_prefix_lens_cpu": [cached for _, cached in step.requests],
        "extend_seq_lens": step.new,
        "req_pool_indices": step.rows,
        "seq_lens": step.lengths,
        "seq_lens_cpu": step.lengths,
        "out_cache_loc": torch.cat(new_slots).long(),
    }
    return SimpleNamespace(**{**plain, **more})


def test_mixed_steps_are_fused_and_all_others_are_sglang_s(backend_class: Any) -> None:
    step = Step([(6, 3), (1, 12), (1, 4)], 1)
    runner = runner_of(step)
    backend, layer, batch = create_backend(runner), runner.model[0], batch_of(step)
    assert type(backend) is backend_class
    backend.init_forward_metadata(batch)
    # The new tokens' keys and values are written before they are read.
    k, v = torch.randn(2, len(step.q), KV_HEADS * SIZE, dtype=DTYPE)
    for kept, rows in ((step.keys, k), (step.values, v)):
        kept[batch.out_cache_loc] = rows.view(-1, KV_HEADS, SIZE).float()
    out = backend.forward_extend(step.q.to(DTYPE), k, v, layer, batch)
    torch.testing.assert_close(out.float(), step.expected(), atol=3e-2, rtol=3e-2)
    assert backend.stock_calls == []

    prompts = batch_of(Step([(6, 3), (4, 0)], 1))
    backend.init_forward_metadata(prompts)
    backend.forward_extend(step.q, k, v, layer, prompts)
    backend.init_forward_metadata(batch)
    backend.init_forward_metadata_out_graph(batch)  # attention within a CUDA graph
    backend.forward_extend(step.q, k, v, layer, batch)
    assert backend.stock_calls == [
        "init_forward_metadata",
        "forward_extend",
        "init_forward_metadata_out_graph",
        "forward_extend",
    ]


def test_decodes_and_drafts_are_sglang_s(backend_class: Any) -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    step = Step([(1, 3), (1, 4)], 1)
    backend = create_backend(runner_of(step))
    decode = {"extend_seq_lens_cpu": None, "extend_prefix_lens_cpu": None}
    backend.init_forward_metadata(batch_of(step, forward_mode=ForwardMode.DECODE, **decode))
    mixed = Step([(6, 3), (1, 4)], 1)
    backend.init_forward_metadata(batch_of(mixed, spec_info=object()))
    # The host's lengths are not the device's.
    backend.init_forward_metadata(batch_of(mixed, seq_lens_cpu=mixed.lengths + 1))
    assert backend.stock_calls == ["init_forward_metadata"] * 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"device": "cpu"}, "device cpu"),
        ({"use_mla_backend": True}, "MLA"),
        ({"model_config": SimpleNamespace(is_encoder_decoder=True)}, "encoder-decoder"),
        ({"server_args": arguments_of(speculative_algorithm="NGRAM")}, "decoding .NGRAM"),
        ({"server_args": arguments_of(enable_pdmux=True)}, "lanes on parts of the SMs"),
        ({"server_args": arguments_of(enable_deterministic_inference=True)}, "deterministic"),
        ({"kv_cache_dtype": torch.float8_e5m2}, "a KV cache of torch.float8_e5m2"),
        ({"dtype": torch.float32, "kv_cache_dtype": torch.float32}, "a model of torch.float32"),
        ({"capability": (8, 9)}, "compute capability 8.9"),
        ({"layers": [{"num_heads": 16, "head_dim": 128, "num_kv_heads": 16}]}, "16 KV heads"),
        ({"layers": [{"sliding_window_size": 1023}]}, "a window of 1023"),
        ({"layers": [{"logit_cap": 30.0}]}, "soft-cap"),
        ({"layers": [{"is_cross_attention": True}]}, "not causal"),
        ({"layers": [{"head_dim": 320}]}, "heads of 320"),
        ({"layers": [{"v_head_dim": 4}]}, "heads of 64 and 4"),
        ({"layers": [{}, {"scaling": 1.0}]}, "layers whose heads differ"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_not_supported_is_refused_with_the_way_out(
    arguments: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch, arguments.pop("capability", (9, 0)))
    layers = [layer_of(**one) for one in arguments.pop("layers", [])]
    runner = runner_of(layers=layers, **arguments)
    with pytest.raises(ValueError, match=rf"{reason}.*use --attention-backend flashinfer"):
        create_backend(runner)


def test_sglang_takes_the_name() -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES

    from sglang.srt.blendserve.runtime.fused.attention import register_fused_attention

    register_fused_attention()
    assert BACKEND in ATTENTION_BACKEND_CHOICES
    assert ATTENTION_BACKENDS[BACKEND] is create_backend
