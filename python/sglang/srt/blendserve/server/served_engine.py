"""The engine behind SGLang's HTTP server, and what the batch service asks of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sglang.srt.blendserve.answering.engine import Answer, Engine
from sglang.srt.blendserve.answering.liveness import Liveness
from sglang.srt.blendserve.batch_file.line_check import ANY_MODEL
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.dispatch.engine_cost import engine_cost_model
from sglang.srt.blendserve.dispatch.fed_engine import FedEngine, ManagedEngine
from sglang.srt.blendserve.engines.engine_pool import EngineStanding
from sglang.srt.blendserve.pool.pool_request import Tokens
from sglang.srt.blendserve.runtime.compat.server_args import release
from sglang.srt.blendserve.server.batch_planning import BatchPlanning
from sglang.srt.blendserve.server.more_engines import MoreEngines
from sglang.srt.blendserve.server.plan_view import OnlineView, PlanView
from sglang.srt.blendserve.store.tally import Tally

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.parser.template_manager import TemplateManager

logger = logging.getLogger(__name__)

_PLAN_SECONDS = 2.0

"""The name that SGLang's own API fills in where a request names no model."""


class ServedEngine(Engine, Protocol):
    """An engine that serves a model under names, and is started and stopped by others."""

    @property
    def model(self) -> str:
        """The name that the engine serves its model under."""
        ...

    @property
    def models(self) -> frozenset[str]:
        """Every model name that a line may ask for."""
        ...

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """The endpoints that the engine can answer."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the engine takes work yet."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether the engine takes no more work because the server is told to stop."""
        ...

    @property
    def planning(self) -> BatchPlanning | None:
        """What plans large batches as a whole, None where nothing does."""
        ...

    @property
    def gpus(self) -> int:
        """How many GPUs its engines have together; of CPU engines, how many there are."""
        ...

    def busy_gpus(self) -> int:
        """Return how many GPUs the engines have that hold lines, where some do."""
        ...

    def weigh(self, tally: Tally) -> float:
        """Return the predicted work of what was answered, in any unit."""
        ...

    def work(self, tally: Tally) -> float | None:
        """Return the predicted work of what was answered, compute and memory, seconds; None: not
        known yet."""
        ...

    def standings(self) -> Sequence[EngineStanding]:
        """Return what each of several engines does; nothing where there is one."""
        ...

    async def begin(self) -> None:
        """Start what belongs to it besides SGLang's server."""
        ...

    async def close(self) -> None:
        """End that."""
        ...

    async def online(self) -> OnlineView | None:
        """Return what online requests feel of the batches, None before there were any."""
        ...

    async def plan(self) -> PlanView | None:
        """Return the scheduler's plan over waiting offline requests, None if it has none."""
        ...

    async def watch(self, busy: Callable[[], bool]) -> None:
        """Watch the engine while it is ``busy``; end the server if it does not answer."""
        ...


class LaunchedEngine:
    """The engine of SGLang's ``launch_server``. All of it runs on the server's event loop."""

    def __init__(
        self,
        tokenizer_manager: TokenizerManager,
        template_manager: TemplateManager,
        hangs: Callable[[], None],
        engines: int = 1,
        window: int = 8192,
    ) -> None:
        """Use the server's own tokenizer manager and chat templates.

        Args:
            hangs: called when the engine does not answer any more; ends the server.
            engines: how many answer lines of batches, this one included.
            window: most lines in one of several.

        Raises:
            ValueError: this machine has no room for so many.
        """
        from sglang.srt.blendserve.answering.executor import Executor

        self._manager, self._hangs = tokenizer_manager, hangs
        self._executor: Engine = Executor(tokenizer_manager, template_manager)
        self._more: MoreEngines | None = None
        fed: FedEngine = ManagedEngine(tokenizer_manager)
        if engines > 1:
            self._more = MoreEngines(tokenizer_manager, self._executor, engines, window)
            self._executor = fed = self._more.pool
        self.planning: BatchPlanning | None = BatchPlanning(tokenizer_manager, fed)
        fields = release.view(tokenizer_manager.server_args)
        replicas = 1 if fields.enable_dp_attention else fields.dp_size
        self._of_one: int = fields.tp_size * fields.pp_size * replicas
        self.gpus = engines * self._of_one
        self._cost: CostModel | None = None
        self._costing: asyncio.Task[None] | None = None
        self._question: asyncio.Future[list[dict[str, Any]]] | None = None

    @property
    def model(self) -> str:
        """The name that the server serves its model under."""
        return str(self._manager.served_model_name)

    @property
    def models(self) -> frozenset[str]:
        """The served name, the path it was loaded from and SGLang's ``default``."""
        return frozenset((self.model, str(self._manager.model_path), ANY_MODEL))

    @property
    def endpoints(self) -> frozenset[Endpoint]:
        """A generating model's endpoints, or an embedding model's."""
        if self._manager.is_generation:
            return frozenset(Endpoint) - {Endpoint.EMBEDDINGS}
        return frozenset((Endpoint.EMBEDDINGS, Endpoint.SCORE, Endpoint.RERANK))

    @property
    def ready(self) -> bool:
        """Whether the server has warmed up."""
        from sglang.srt.managers.tokenizer_manager import ServerStatus

        return bool(self._manager.server_status != ServerStatus.Starting)

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM has come: SGLang then waits for all requests to end, and ends."""
        return bool(self._manager.gracefully_exit)

    def busy_gpus(self) -> int:
        """Return how many GPUs the engines have that hold lines, where some do."""
        busy = sum(one.in_flight > 0 for one in self.standings())
        return max(busy, 1) * self._of_one

    def weigh(self, tally: Tally) -> float:
        """Return the predicted work of what was answered; by tokens until the costs are known."""
        work = self.work(tally)
        if work is not None:
            return work
        return float(tally.input_tokens - tally.cached_tokens + tally.output_tokens)

    def work(self, tally: Tally) -> float | None:
        """Return the predicted work of what was answered, as if all its lines were alike."""
        if self._cost is None:
            self._costing = self._costing or asyncio.ensure_future(self._learn_costs())
            return None
        lines = max(tally.completed, 1)
        prompt, output = tally.input_tokens / lines, tally.output_tokens / lines
        computed = prompt - tally.cached_tokens / lines
        cost = self._cost.compute_seconds(prompt, output, computed)
        return float(lines * (cost + self._cost.memory_seconds(prompt, output)))

    async def _learn_costs(self) -> None:
        try:
            self._cost = await asyncio.to_thread(engine_cost_model, self._manager)
        except Exception as error:  # of any kind, in a model's config: tokens do, too
            logger.info("GPU time is divided among batches by their tokens: %s", error)

    async def execute(
        self,
        line: BatchLine,
        rid: str,
        prompts: Sequence[Tokens] | None = None,
        engine: int | None = None,
    ) -> Answer:
        """Return the answer to a line; ``observation.aborted`` is set if it was given up."""
        return await self._executor.execute(line, rid, prompts, engine)

    def abort(self, job: str) -> None:
        """Give up all requests of a job, wherever in the scheduler they are."""
        self._executor.abort(job)

    def standings(self) -> Sequence[EngineStanding]:
        """Return what each of several engines does; nothing where there is one."""
        return () if self._more is None else self._more.pool.standings()

    async def begin(self) -> None:
        """Start the other engines."""
        if self._more is not None:
            await self._more.begin()

    async def close(self) -> None:
        """End the other engines."""
        if self._more is not None:
            await self._more.pool.close()

    async def plan(self) -> PlanView | None:
        """Return the scheduler's plan over waiting offline requests, None if it has none."""
        return next(filter(None, map(PlanView.from_state, await self._states())), None)

    async def online(self) -> OnlineView | None:
        """Return what online requests feel of the batches, None before there were any."""
        return next(filter(None, map(OnlineView.from_state, await self._states())), None)

    async def _states(self) -> Sequence[dict[str, Any]]:
        """What the schedulers say of themselves; nothing if they do not answer soon."""
        if not self.ready or self.stopping:
            return ()
        if self._question is None or self._question.done():
            self._question = asyncio.ensure_future(self._manager.get_internal_state())
        # A scheduler in the middle of a long step answers later; the question stands until then.
        await asyncio.wait({self._question}, timeout=_PLAN_SECONDS)
        if not self._question.done():
            return ()
        states: Sequence[dict[str, Any]] = self._question.result()
        return states

    async def watch(self, busy: Callable[[], bool]) -> None:
        """Watch the engine while it is ``busy``; end the server if it does not answer.

        SGLang's ``--watchdog-timeout`` is the least time that an answer may take.
        """
        floor = float(release.view(self._manager.server_args).watchdog_timeout)
        await Liveness(self._manager.get_internal_state, floor).wait_for_death(busy)
        self._hangs()
