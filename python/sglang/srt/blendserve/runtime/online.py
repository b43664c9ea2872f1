"""How offline prefill makes way for online requests that decode (``--blendserve-online-share``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.policy.pace import StepLoad, beside_online
from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.runtime.offline_request import offline_request

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

_AFTERWARDS = 64
"""Steps after the last online decode for which offline prefill still makes way for the next one."""


class OnlineRequests:
    """The online requests among those that decode, and what is due to them."""

    def __init__(self, share: float) -> None:
        """``share``: of a step's time that the prefill of offline requests may take."""
        self._share = share
        self._steps_without = _AFTERWARDS
        self._prefilled = False

    def decode_first(self, running: list[Req]) -> bool:
        """Return whether it is the decodes' turn, where they do not share a forward with prefill.

        SGLang goes on with prefill as long as there is any, and decodes nothing meanwhile; beside
        online requests prefill and decode take turns.
        """
        return self._prefilled and any(offline_request(req) is None for req in running)

    def launches(self, *, prefill: bool) -> None:
        """Note whether the step that comes computes prompts."""
        self._prefilled = prefill

    def look(self, running: list[Req]) -> list[Req]:
        """Return the online requests among the ``running`` ones; to be called once in a step."""
        online = [req for req in running if offline_request(req) is None]
        self._steps_without = 0 if online else self._steps_without + 1
        return online

    def limit(self, cost: CostModel, state: EngineState, tokens: int) -> int:
        """Return how many of the ``tokens`` of prefill that the policy chose the step may compute.

        The time of a prefill is latency that those feel which decode, or may come any moment.
        """
        if self._steps_without >= _AFTERWARDS:
            return tokens
        return beside_online(cost, StepLoad(state.running, state.kv_tokens), self._share, tokens)
