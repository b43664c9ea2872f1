"""SGLang's prefill admission, with predicted lengths in place of ``max_new_tokens``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS, AddReqResult, PrefillAdder

from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.offline_request import offline_request

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class BlendPrefillAdder(PrefillAdder):
    """Admits requests to a prefill batch: online ones as SGLang does.

    Offline ones have already been admitted by their predicted peak; here it is only made sure that
    they fit now.
    """

    def _get_running_request_total_token_offset(self, req: Req) -> float:
        """What SGLang reserves for a running request: for offline ones, what is predicted."""
        offline = offline_request(req)
        if offline is None:
            return super()._get_running_request_total_token_offset(req)
        return max(offline.expected_tokens - len(req.output_ids), 1.0)

    def add_one_req(
        self, req: Req, has_chunked_req: bool, truncation_align_size: int | None
    ) -> AddReqResult:
        """Admit ``req`` to the prefill batch if it fits."""
        offline = offline_request(req)
        if offline is None:
            return super().add_one_req(req, has_chunked_req, truncation_align_size)
        if has_chunked_req:
            # Memory is so short that SGLang cut the prompt in progress shorter than planned; a
            # second one must not be cut beside it.
            return AddReqResult.OTHER
        admitted = len(self.can_run_list)
        total, current = seams.reserved_tokens(self)
        # SGLang checks its reserve for the new request (`clip`) against what it has not reserved
        # for others. Offset the first and drop the second: what is left is the check that the
        # prompt, one more token of every running request and a page each fit in the free slots.
        clip = min(
            max(req.sampling_params.max_new_tokens - len(req.output_ids), 0), CLIP_MAX_NEW_TOKENS
        )
        running = len(self.running_batch.reqs) if self.running_batch is not None else 0
        seams.reserve_tokens(self, current + (running + admitted + 1) * self.page_size - clip)
        try:
            return super().add_one_req(req, has_chunked_req, truncation_align_size)
        finally:
            total += seams.reserved_tokens(self)[1] - current
            if len(self.can_run_list) > admitted:
                total += max(offline.expected_tokens - len(req.output_ids), 1.0)
            seams.reserve_tokens(self, total)
