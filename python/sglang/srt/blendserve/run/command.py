"""Run a JSONL batch file through SGLang and write the answers.

Each line is one request in OpenAI's batch format, for /v1/chat/completions, /v1/completions or,
where the model does them, /v1/embeddings:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
     "body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64}}

    sglang-blendserve run -i in.jsonl -o out.jsonl --model-path MODEL

Answers are appended to the output as they finish. Every line that is not blank ends as exactly one
line of the output or of the error file; a bad line is an error with its line number and stops
nobody else. Ctrl-C keeps what is done, and the same command with --resume answers the rest.

All flags of SGLang's server (--tp-size, --mem-fraction-static, ...) work here too; --help-sglang
lists them. On a machine without a GPU the flags that SGLang needs there are set by themselves.

Exit status: 0 all lines have their result, 1 the run could not start or go on, 2 wrong flags,
130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from typing import TYPE_CHECKING

from sglang.srt.blendserve.batch_file.results import refusal
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.cost.model_config import ConfigError
from sglang.srt.blendserve.job_ids import MAX_REQUESTS, new_job
from sglang.srt.blendserve.run import flags
from sglang.srt.blendserve.run.accounts import MAX_KEPT_TOKENS, Accounts
from sglang.srt.blendserve.run.answering import Answering
from sglang.srt.blendserve.run.failure import INTERRUPTED, RunFailure
from sglang.srt.blendserve.run.hindsight import Hindsight, look_back
from sglang.srt.blendserve.run.journal import Identity, RunJournal
from sglang.srt.blendserve.run.progress import Progress
from sglang.srt.blendserve.run.source import BatchSource, Scan
from sglang.srt.blendserve.run.summary import Summary

if TYPE_CHECKING:
    from sglang.srt.blendserve.cost.cost_model import CostModel
    from sglang.srt.blendserve.run.engine import OfflineEngine

add_arguments = flags.add_arguments
parse_args = flags.parse_args


def main(args: argparse.Namespace) -> int:
    """Run the batch; return the exit status."""
    try:
        return _main(args)
    except RunFailure as failure:
        print(failure, file=sys.stderr)
        return failure.status
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED


def _main(args: argparse.Namespace) -> int:
    with BatchSource(args.input, Rules(max_lines=MAX_REQUESTS)) as source:
        scan = source.scan()
        identity = Identity(new_job(), scan.digest, args.model_path)
        with RunJournal(
            args.output, args.errors, identity, resume=args.resume, overwrite=args.overwrite
        ) as journal:
            return _Run(args, source, scan, journal).run()


class _Run:
    """One run, from a checked input and an open journal to the summary."""

    def __init__(
        self, args: argparse.Namespace, source: BatchSource, scan: Scan, journal: RunJournal
    ) -> None:
        self._args, self._source, self._scan, self._journal = args, source, scan, journal
        self._resumed = journal.done
        self._accounts = Accounts()
        self._startup_seconds = 0.0
        self._answering: Answering | None = None
        self._cost: CostModel | None = None
        self._note: str | None = None

    def run(self) -> int:
        """Answer what has no result yet and report; return the exit status."""
        todo = self._scan.requests
        if self._resumed:
            left = (line for line in self._source.lines() if line not in self._journal)
            todo = sum(isinstance(line, BatchLine) for line in left)
        self._announce(todo)
        try:
            if todo:
                self._start_and_answer(todo)
            else:
                self._refuse()
        except RunFailure as failure:
            if self._answering is not None:
                self._report()
            raise RunFailure(f"{failure}\n{self._how_to_go_on()}", failure.status) from failure
        self._report()
        return 0

    def _announce(self, todo: int) -> None:
        args, scan = self._args, self._scan
        print(
            f"{self._source.name}: {scan.requests} requests"
            + (f", {scan.refused} bad lines (see {args.errors})" if scan.refused else "")
            + (f"; {self._resumed} lines have their result, {todo} to do" if self._resumed else ""),
            file=sys.stderr,
        )
        earlier = self._journal.earlier_model
        if earlier not in (None, args.model_path):
            print(
                f"The results so far are from {earlier}, the others will be from "
                f"{args.model_path}.",
                file=sys.stderr,
            )

    def _start_and_answer(self, todo: int) -> None:
        has_gpu = flags.prepare_environment()
        server_args = flags.server_args(self._args, has_gpu=has_gpu)

        from sglang.srt.blendserve.run.engine import OfflineEngine

        print("Starting the engine ...", file=sys.stderr, flush=True)
        with OfflineEngine(server_args) as engine:
            self._startup_seconds = engine.startup_seconds
            self._cost = self._find_cost(engine)
            with Progress(self._scan.requests + self._scan.refused, self._resumed) as progress:
                self._answer(engine, progress, todo)

    def _answer(self, engine: OfflineEngine, progress: Progress, todo: int) -> None:
        from sglang.srt.blendserve.answering.executor import Executor

        async def work(ending: asyncio.Future[str]) -> None:
            executor = Executor(
                engine.tokenizer_manager, engine.template_manager, keep_prompts=True
            )
            self._answering = Answering(
                executor,
                self._journal,
                self._accounts,
                progress,
                total=todo,
                max_in_flight=self._args.max_in_flight,
            )
            await self._answering.run(self._source.lines(), ending)

        engine.run(work)

    def _refuse(self) -> None:
        """Write down the bad lines of a batch that has no other lines left."""
        for line in self._source.lines():
            if isinstance(line, LineError) and line not in self._journal:
                self._journal.append(refusal(self._journal.identity.job, line))

    def _find_cost(self, engine: OfflineEngine) -> CostModel | None:
        try:
            return engine.cost_model()
        except ConfigError as error:
            self._note = f"no density: {error}"
            return None

    def _report(self) -> None:
        self._journal.sync()
        summary = self._summarize()
        print("\n".join(summary.lines()))
        if self._args.summary is not None:
            try:
                summary.write(self._args.summary)
            except OSError as error:
                message = f"Cannot write {self._args.summary}: {error.strerror}."
                raise RunFailure(message) from error

    def _summarize(self) -> Summary:
        accounts, journal = self._accounts, self._journal
        seconds = self._answering.seconds if self._answering else 0.0
        tokens = accounts.input_tokens + accounts.output_tokens
        hindsight = self._look_back()
        total = self._scan.requests + self._scan.refused
        return Summary(
            policy=self._args.policy,
            finished=journal.done == total,
            requests=total,
            completed=journal.completed,
            failed=journal.failed,
            resumed=self._resumed,
            input_tokens=accounts.input_tokens,
            output_tokens=accounts.output_tokens,
            cached_tokens=accounts.cached_tokens,
            seconds=seconds,
            startup_seconds=self._startup_seconds,
            tokens_per_second=tokens / seconds if seconds else 0.0,
            prefix_sharing=accounts.cached_tokens / max(accounts.input_tokens, 1),
            prefix_sharing_optimum=hindsight.sharing_optimum,
            retractions=accounts.retractions,
            planned_density=hindsight.planned_density,
            measured_density=hindsight.measured_density,
            note=self._note,
        )

    def _look_back(self) -> Hindsight:
        prompts = self._accounts.prompts
        if prompts is None:
            self._note = f"no optimum: more than {MAX_KEPT_TOKENS} prompt tokens"
        return look_back(prompts or [], self._cost)

    def _how_to_go_on(self) -> str:
        total = self._scan.requests + self._scan.refused
        given = [flag for flag in sys.argv if flag not in ("--resume", "--overwrite")]
        command = shlex.join(["sglang-blendserve", *given[1:], "--resume"])
        return f"{self._journal.done} of {total} lines have their result. To go on:\n  {command}"
