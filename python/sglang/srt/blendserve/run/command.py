"""Run a batch file through SGLang and write the answers.

Each line is one request in OpenAI's batch format, for /v1/chat/completions, /v1/completions or,
where the model does them, /v1/embeddings:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
     "body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}}

    sglang-blendserve run -i in.jsonl -o out.jsonl --model-path MODEL

Input and output may be Parquet files, too (-i requests.parquet -o answers.parquet), an output that
ends in a slash gets parts of a table as they are done, and all may be in an object store:

    sglang-blendserve run -i s3://bucket/in.jsonl -o s3://bucket/out/ --model-path MODEL

Answers are appended to the output as they finish. Every line that is not blank ends as exactly one
line of the output or of the error file; a bad line is an error with its line number and stops
nobody else. Ctrl-C keeps what is done, and the same command with --resume answers the rest;
with --retry-errors it answers the lines of the error file again.

All flags of SGLang's server (--tp-size, --mem-fraction-static, ...) work here too; --help-sglang
lists them. On a machine without a GPU the flags that SGLang needs there are set by themselves.

Which lines are in the engine is noted before they go in. If the engine dies it is started again,
and the lines that were in it go last, in ever smaller groups; one that was alone in the engine when
it died becomes an error line, all others are answered.

Exit status: 0 all lines have their result, 1 the run could not start or go on, 2 wrong flags,
75 stopped by --stop-after, 130 by Ctrl-C or SIGTERM; after these two --resume goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.line_source import InputScan, LineSource
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.answering.totals import JobTotals
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.cost.model_config import ConfigError
from sglang.srt.blendserve.run import flags
from sglang.srt.blendserve.run.deadline import Deadline, status_of
from sglang.srt.blendserve.run.failure import INTERRUPTED, TIME_IS_UP, EngineDied, RunFailure
from sglang.srt.blendserve.run.progress import Progress
from sglang.srt.blendserve.run.run_figures import RunFigures
from sglang.srt.blendserve.run.run_log import Identity, RunLog
from sglang.srt.blendserve.run.run_loop import NoEngine, answering_loop
from sglang.srt.blendserve.run.source import BatchSource
from sglang.srt.blendserve.run.suspects import Restarts, Suspects
from sglang.srt.blendserve.settings import POLICY
from sglang.srt.blendserve.tables import remote

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

    from sglang.srt.blendserve.answering.engine import Engine
    from sglang.srt.blendserve.cost.cost_model import CostModel
    from sglang.srt.blendserve.run.engines import StartedEngine
    from sglang.srt.blendserve.run.planning import RunPlanning

add_arguments = flags.add_arguments
parse_args = flags.parse_args


def main(args: argparse.Namespace) -> int:
    """Run the batch; return the exit status."""
    deadline = Deadline(args.stop_after)
    if args.stop_with_stdin:
        threading.Thread(target=_interrupt_at_the_end_of_stdin, daemon=True).start()
    try:
        return _main(args, deadline)
    except RunFailure as failure:
        print(failure, file=sys.stderr)
        status = failure.status
    except KeyboardInterrupt as interrupt:
        print("Stopped.", file=sys.stderr)
        status = status_of(interrupt)
    if status == TIME_IS_UP:
        print("The time of --stop-after is up.", file=sys.stderr)
    return status


def _main(args: argparse.Namespace, deadline: Deadline) -> int:
    again, delivery = args.resume or args.retry_errors, args.delivery
    with ExitStack() as stack:
        with deadline.interrupting():
            delivery.prepare(again=again, overwrite=args.overwrite)
            source = stack.enter_context(
                BatchSource(args.input, Rules(max_lines=job_ids.MAX_REQUESTS))
            )
            log = stack.enter_context(
                RunLog(
                    args.output,
                    args.errors,
                    resume=again,
                    overwrite=args.overwrite,
                    retry_errors=args.retry_errors,
                )
            )
            found = source.scan(log.find)
        log.begin(Identity(job_ids.new_job(), source.digest, args.model_path))
        stack.enter_context(delivery.running(log, overwrite=args.overwrite))
        late: RunFailure | None = None
        try:
            status = _Run(args, source, found, log, deadline).run()
        except RunFailure as failure:
            if log.done < found.total:
                raise
            late = failure  # of the summary: all is answered
    delivery.finish(failed=log.failed)
    if late is not None:
        raise late
    return status


def _interrupt_at_the_end_of_stdin() -> None:
    while os.read(sys.stdin.fileno(), 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGINT)


class _Run:
    """One run, from a checked input and an open log to the summary."""

    def __init__(
        self,
        args: argparse.Namespace,
        source: BatchSource,
        found: InputScan,
        log: RunLog,
        deadline: Deadline,
    ) -> None:
        self._args, self._source, self._found, self._log = args, source, found, log
        self._deadline = deadline
        self._resumed = log.done
        self._suspects = Suspects(log.engine_record, log)
        self._totals = JobTotals()
        self._figures = RunFigures()
        self._threads_given = False

    def run(self) -> int:
        """Answer what has no result yet and report; return the exit status."""
        self._announce()
        try:
            if self._found.todo:
                self._start_and_answer()
            else:  # bad lines at most: they are written down without an engine
                with self._suspects:
                    self._answer_without_an_engine()
        except RunFailure as failure:
            if self._figures.startup_seconds:
                self._report()
            raise RunFailure(f"{failure}\n{self._how_to_go_on()}", failure.status) from failure
        self._report()
        if self._log.done == self._found.total:
            self._forget_the_store()
        return 0

    def _announce(self) -> None:
        args, found = self._args, self._found
        resumed = f"; {self._resumed} lines have their result, {found.todo} to do"
        print(
            f"{self._source.name}: {found.total - found.bad} requests"
            + (f", {found.bad} bad lines (see {args.errors})" if found.bad else "")
            + (resumed if self._resumed else ""),
            file=sys.stderr,
        )
        earlier = self._log.earlier_model
        if earlier not in (None, args.model_path):
            print(
                f"The results so far are from {earlier}, the others will be from "
                f"{args.model_path}.",
                file=sys.stderr,
            )

    def _start_and_answer(self) -> None:
        """Answer, with a new engine whenever one has died as long as that leads on."""
        self._threads_given = "OMP_NUM_THREADS" in os.environ
        has_gpu = flags.prepare_environment()
        restarts = Restarts(self._args.max_engine_restarts)
        with self._suspects, ExitStack() as stack:
            planning = None
            while self._suspects.others(self._found.total - self._log.done):
                try:
                    with self._deadline.interrupting():
                        server_args = flags.server_args(self._args, has_gpu=has_gpu)
                        planning = planning or self._plan_ahead(server_args, stack)
                except KeyboardInterrupt as interrupt:
                    message = "Stopped before the engine was started; no request was sent."
                    raise RunFailure(message, status_of(interrupt)) from interrupt
                try:
                    self._answer_with_an_engine(server_args, planning)
                    return
                except EngineDied as death:
                    print(f"\n{death}", file=sys.stderr)
                    if not restarts.lead_on(
                        self._totals.tally.completed, self._suspects.engine_died()
                    ):
                        raise
                    print(f"{self._suspects}; {restarts}", file=sys.stderr)
            self._answer_without_an_engine()

    def _plan_ahead(self, server_args: ServerArgs, stack: ExitStack) -> RunPlanning | None:
        """Begin to plan over all lines, before the engine; None if that is not needed, or cannot
        be done."""
        args = self._args
        fits = self._found.todo <= args.max_in_flight and args.engines == 1
        if args.policy != POLICY or fits:
            return None
        from sglang.srt.blendserve.run.planning import RunPlanning

        try:
            return stack.enter_context(
                RunPlanning(args.output, self._source, self._found, self._log, server_args)
            )
        except (OSError, EOFError, ValueError) as error:
            print(
                f"{error}\nThe lines go to the engine in their order, of which it plans "
                f"{args.max_in_flight:,} at a time.",
                file=sys.stderr,
            )
            return None

    def _answer_with_an_engine(self, server_args: ServerArgs, planning: RunPlanning | None) -> None:
        from sglang.srt.blendserve.run import engines

        many = "the engine" if self._args.engines == 1 else f"{self._args.engines} engines"
        print(f"Starting {many} ...", file=sys.stderr, flush=True)
        with engines.start(
            self._args,
            server_args,
            self._deadline,
            threads_given=self._threads_given,
        ) as engine:
            self._figures.startup_seconds += engine.startup_seconds
            self._figures.cost = self._find_cost(engine)
            executor = engine.executor()
            stop = Stop()
            lines = self._in_order()
            if planning is not None and self._figures.cost is not None:
                lines = planning.lines(engine.fed, self._figures.cost, stop)

            async def work() -> None:
                async with self._figures.first_forward.watched(engine.states, stop):
                    await self._answer(executor, progress, stop, lines)

            try:
                with Progress(
                    self._found.total, self._log.done, standings=engine.standings
                ) as progress:
                    engine.answer(work(), stop)
            finally:
                if engine.standings is not None:
                    self._figures.answered_by = [one.answered for one in engine.standings()]
                if planning is not None:
                    self._figures.prepare_seconds = planning.seconds

    def _forget_the_store(self) -> None:
        """Remove the request store that this run or an earlier one has left."""
        from sglang.srt.blendserve.run.planning import forget_store

        forget_store(self._args.output)

    def _answer_without_an_engine(self) -> None:
        asyncio.run(self._answer(NoEngine(), None, Stop(), self._in_order()))

    @asynccontextmanager
    async def _in_order(self) -> AsyncIterator[LineSource]:
        """Give the lines that have no result, front to back."""
        with self._source.lines(self._log.__contains__) as lines:
            yield lines

    async def _answer(
        self,
        engine: Engine,
        progress: Progress | None,
        stop: Stop,
        source: AbstractAsyncContextManager[LineSource],
    ) -> None:
        """Answer the lines that have no result.

        Raises:
            RunFailure: it ended early; all results that had come are written.
        """
        async with source as lines:
            loop = answering_loop(
                self._log,
                lines,
                self._found,
                engine,
                stop,
                progress,
                self._args.max_in_flight * self._args.engines,
                record=self._suspects.record,
                totals=self._totals,
            )
            await loop.run()
        if self._log.done == self._found.total:
            return  # whatever was to stop it
        if stop.reason in ("interrupted", "time is up"):
            self._figures.stopped_early = True
            status = INTERRUPTED if stop.reason == "interrupted" else TIME_IS_UP
            raise RunFailure("Stopped before the end.", status)
        if stop.reason == "no engine":
            raise RunFailure("No engine is left; SGLang's errors, if it had any, stand above.")
        if stop.reason is not None:
            raise EngineDied("The engine died; SGLang's error, if it had one, stands above.")

    def _find_cost(self, engine: StartedEngine) -> CostModel | None:
        try:
            return engine.cost_model()
        except ConfigError as error:
            self._figures.note = f"no density: {error}"
            return None

    def _report(self) -> None:
        self._log.sync()
        summary = self._figures.summary(
            self._args.policy, self._found.total, self._log, self._totals, resumed=self._resumed
        )
        print("\n".join(summary.lines()))
        if self._args.summary is not None:
            try:
                summary.write(self._args.summary)
            except OSError as error:
                message = f"Cannot write {self._args.summary}: {error.strerror}."
                raise RunFailure(message) from error

    def _how_to_go_on(self) -> str:
        again = ("--resume", "--overwrite", "--retry-errors")
        given = [remote.shown(flag) for flag in sys.argv if flag not in again]
        command = shlex.join(["sglang-blendserve", *given[1:], "--resume"])
        done, total = self._log.done, self._found.total
        return f"{done} of {total} lines have their result. To go on:\n  {command}"
