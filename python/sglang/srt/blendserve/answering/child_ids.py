"""The ids of the several requests that SGLang makes of one with ``n`` answers."""

from __future__ import annotations

import inspect
from typing import Any

from sglang.srt.blendserve import job_ids


def keep_marks() -> None:
    """Have the requests made of an offline one be offline as well, and of the same job.

    SGLang 0.5.23 gives them ids of their own, by which the scheduler would take them for online
    requests, and by which nobody could abort them with their job. 0.5.17 puts the first id in
    front, and so does SGLang from here on. Calling this again changes nothing.
    """
    from sglang.srt.managers.io_struct import GenerateReqInput

    plain: Any = GenerateReqInput.regenerate_rid
    if "prefix" in inspect.signature(plain).parameters or hasattr(plain, "keeps_marks"):
        return

    def regenerate_rid(request: Any) -> Any:
        before, found = request.rid, plain(request)
        if isinstance(before, str) and job_ids.parse_rid(before) is not None:
            request.rid = f"{before}_{found}"
        return request.rid

    regenerate_rid.keeps_marks = True  # type: ignore[attr-defined]
    GenerateReqInput.regenerate_rid = regenerate_rid
