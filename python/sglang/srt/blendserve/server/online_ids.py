"""What keeps online clients from the requests of batches, whichever of SGLang's routes they use.

SGLang lets a client choose its requests' ids, and its scheduler aborts by prefix. A request named
``b`` that its client gives up would so end all requests whose ids begin with that letter, and an id
that looks like one of a batch would join the batch. All routes meet in two methods of SGLang's
tokenizer manager, which are watched here:

- ``generate_request`` refuses ids that reach those of offline requests, unless we made them;
- ``abort_request``, asked by ``POST /abort_request``, ends the online requests only.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.settings import POLICY

_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"

_REFUSED = (
    "The request id {rid!r} is kept for requests of batches: use another rid, which neither begins "
    "with 'blendserve-' nor is the beginning of that word."
)

asked_by_client: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "blendserve_abort_asked_by_client", default=False
)
"""Whether the running code answers ``POST /abort_request``."""


def register() -> None:
    """Hook into SGLang's tokenizer manager; in every process, because each may have one."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{_MANAGER}.generate_request", _before_request, HookType.BEFORE)
    HookRegistry.register(f"{_MANAGER}.abort_request", _around_abort, HookType.AROUND)


def _before_request(manager: Any, obj: Any, request: Any = None, *_: Any, **__: Any) -> None:
    """Before ``generate_request``: refuse ids that reach offline requests.

    Raises:
        ValueError: one does; SGLang answers with status 400.
    """
    if manager.server_args.schedule_policy != POLICY:
        return
    given = obj.rid if isinstance(obj.rid, list) else [obj.rid]
    for rid in given:
        if not isinstance(rid, str) or not job_ids.reaches_offline(rid):
            continue
        # A result file shows its batch's ids to clients, so from them not even those are taken.
        if _is_http(request) or not job_ids.is_sealed(rid):
            raise ValueError(_REFUSED.format(rid=rid[:80]))


def _around_abort(
    original: Callable[..., None], manager: Any, rid: str = "", abort_all: bool = False
) -> None:
    """Around ``abort_request``: a client reaches online requests only.

    Raises:
        ValueError: a client names an offline request; SGLang answers with status 400.
    """
    if manager.server_args.schedule_policy != POLICY:
        original(manager, rid=rid, abort_all=abort_all)
    elif not asked_by_client.get():
        from sglang.srt.blendserve.dispatch import list_calls

        original(manager, rid=rid, abort_all=abort_all)
        if rid or abort_all:
            list_calls.aborted(manager, rid, abort_all)
    elif abort_all:
        for online in [one for one in manager.rid_to_state if not job_ids.reaches_offline(one)]:
            original(manager, rid=online)
    elif rid and job_ids.reaches_offline(rid):
        raise ValueError(_REFUSED.format(rid=rid[:80]))
    else:
        original(manager, rid=rid)


def _is_http(request: Any) -> bool:
    from starlette.requests import HTTPConnection

    return isinstance(request, HTTPConnection)
