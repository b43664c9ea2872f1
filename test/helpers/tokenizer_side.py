"""SGLang's own tokenizer manager, templates and OpenAI handlers, without a scheduler behind them.

What the handlers send is pickled and unpickled as on its way to the scheduler process, and kept.
Each request is then answered at once with one token. So tests see all that happens to a line up to
the engine's door, on the real classes of either release, and start in seconds.
"""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from two_releases import OLD

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.answering.executor import Executor
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint

ANSWER = {
    "completion_tokens": 1,
    "prompt_tokens": 2,
    "cached_tokens": 0,
    "finish_reason": {"type": "stop", "matched": None},
    "weight_version": "default",
    "output_token_logprobs": [(-0.5, 5, "a")],
    "output_top_logprobs": [[(-0.5, 5, "a"), (-1.5, 6, "b")]],
    "input_token_logprobs": [(None, 5, "a"), (-0.5, 6, "b")],
    "input_top_logprobs": [None, [(-0.5, 6, "b")]],
}

URLS = {
    "messages": Endpoint.CHAT,
    "prompt": Endpoint.COMPLETIONS,
    "input": Endpoint.EMBEDDINGS,
    "items": Endpoint.SCORE,
    "documents": Endpoint.RERANK,
}


@dataclass
class TokenizerSide:
    """The part of an engine in front of its scheduler.

    Attributes:
        executor: answers lines with it.
        sent: what the scheduler would have read.
        meta: changes the ``meta_info`` of an answer, or raises what the manager would raise.
        text: what the model says.
    """

    executor: Executor
    manager: Any
    sent: list[Any] = field(default_factory=list)
    meta: Callable[[dict[str, Any]], dict[str, Any]] = lambda meta: meta
    lines: count[int] = field(default_factory=count)
    text: str = "a"

    async def execute(
        self, body: dict[str, Any], number: int = 7, url: Endpoint | None = None
    ) -> Answer:
        """Answer the line of that number, of the endpoint that the body is for."""
        if url is None:
            [url] = [url for name, url in URLS.items() if name in body]
        line = BatchLine(line=number, custom_id="a", method="POST", url=url, body=body)
        self.sent.clear()
        return await self.executor.execute(line, job_ids.make_rid("a" * 32, 0, next(self.lines)))

    async def error(self, body: dict[str, Any], url: Endpoint | None = None) -> dict[str, Any]:
        """Return the error object that a body is refused with; nothing is sent."""
        response = (await self.execute(body, url=url)).response
        assert response.status_code == 400, response.body
        assert self.sent == []
        return dict(response.body["error"])

    async def close(self) -> None:
        """End the tasks of the tokenizer manager."""
        for task in self.manager.asyncio_tasks:
            task.cancel()


def tokenizer_side(model: Path | str, **settings: Any) -> TokenizerSide:
    """Start it; ``settings`` are arguments of SGLang's ``ServerArgs``."""
    from sglang.srt.entrypoints.engine import init_tokenizer_manager
    from sglang.srt.managers import io_struct
    from sglang.srt.server_args import PortArgs, ServerArgs

    from sglang.srt.blendserve.runtime.compat.server_args import release

    given = {"device": "cpu", "sampling_backend": "pytorch", "disable_cuda_graph": True}
    server_args = ServerArgs(model_path=str(model), **{**given, **settings})
    release.resolve(server_args)
    if not OLD:
        from sglang.srt.runtime_context import publish

        publish(server_args, role="tokenizer")
    manager, templates = init_tokenizer_manager(server_args, PortArgs.init_new(server_args))
    side = TokenizerSide(Executor(manager, templates, keep_prompts=True), manager)

    def dispatch(message: Any) -> None:
        sent = pickle.loads(pickle.dumps(message))  # as it is sent by default
        side.sent += getattr(sent, "batch", [sent])

    async def dispatch_async(message: Any) -> None:
        dispatch(message)

    async def answer(request: Any, raw_request: Any = None) -> AsyncIterator[dict[str, Any]]:
        if OLD:
            manager._remove_req_state(request.rid)
        else:
            del manager.rid_to_state[request.rid]
        meta = side.meta({"id": request.rid, **ANSWER})
        embedding = not isinstance(request, io_struct.GenerateReqInput)
        content = {"embedding": [0.5, 0.5]} if embedding else {"text": side.text, "output_ids": [5]}
        yield {**content, "meta_info": meta}

    manager._dispatch_to_scheduler = dispatch
    manager._async_dispatch_to_scheduler = dispatch_async
    manager._wait_one_response = answer
    return side
