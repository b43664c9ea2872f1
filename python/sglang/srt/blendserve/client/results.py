"""The results of a batch: waiting for them, and fetching them into files."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types import Batch
from tqdm import tqdm

from sglang.srt.blendserve.client.server import ENDED, ClientError, said, shown
from sglang.srt.blendserve.tables import answer_rows, parquet
from sglang.srt.blendserve.tables.data_error import DataError

_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.5, 5.0
"""Between two looks at a batch: soon at first, for one that ends at once."""

_LINE_SECONDS = 30.0

_SHOWN = "`sglang-blendserve status` shows whether the server made one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that may wait for results and write them."""
    parser.add_argument("--wait", action="store_true", help="wait for the end, fetch the results")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")


def targets(output: Path) -> list[Path]:
    """Return the files that `fetch` writes: answers and failed lines, or one table with both."""
    if parquet.is_table(output):
        return [output]
    return [output, output.with_name(f"{output.stem}.errors{output.suffix}")]


def check(output: Path, *, overwrite: bool, source: str | None = None) -> None:
    """Check that results can be written, before anything is sent or waited for.

    Args:
        output: as `targets` takes it.
        overwrite: whether what is there may be replaced.
        source: a file of requests that must stay as it is.

    Raises:
        ClientError: they cannot.
    """
    if output.suffix == ".gz":
        raise ClientError(f"{output}: results are not packed; give a name without .gz")
    if not output.absolute().parent.is_dir():
        raise ClientError(f"there is no folder {output.absolute().parent}; create it first")
    for path in targets(output):
        if path.is_dir():
            raise ClientError(f"{path} is a folder; give a file's name")
        if source is not None and parquet.lies_in(path, source):
            raise ClientError(f"{path} is, or lies in, {source}, which would be lost")
        if path.exists() and not overwrite:
            raise ClientError(f"{path} is there already; --overwrite replaces it")
    if parquet.is_table(output):
        try:
            parquet.require()
        except DataError as error:
            raise ClientError(str(error)) from error


def create(client: openai.OpenAI, **given: Any) -> Batch:
    """Create a batch, never twice.

    Args:
        given: as `openai.OpenAI().batches.create` takes it.

    Raises:
        ClientError: nobody knows whether there is a batch now.
    """
    try:
        return client.with_options(max_retries=0).batches.create(**given)
    except openai.APIConnectionError as error:
        raise ClientError(
            f"the server did not answer ({error.__cause__ or error}) when it was asked for a batch "
            f"of {given['input_file_id']}. {_SHOWN}"
        ) from error
    except KeyboardInterrupt:
        print(f"Stopped while a batch was asked for. {_SHOWN}", file=sys.stderr)
        raise


@contextmanager
def told_how_to_go_on(batch_id: str, output: Path | None, server: str) -> Iterator[None]:
    """Say how a batch's results are got where the block ends in an error or by Ctrl-C."""
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        print(
            f"{'Stopped; the batch goes on.' if stopped else 'The results are not fetched.'} To "
            f"get them:\n  sglang-blendserve fetch {batch_id} --wait -o {output or 'FILE'} "
            f"--server {server}",
            file=sys.stderr,
        )
        raise


def wait(client: openai.OpenAI, batch_id: str) -> Batch:
    """Return a batch once it has ended, with a bar on the way. A server that does not answer for a
    while is asked again.

    Raises:
        openai.APIStatusError: the server knows no such batch, or refuses.
    """
    seconds, line_due = _SHORTEST_SECONDS, time.monotonic() + _LINE_SECONDS
    with tqdm(unit="req", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        while True:
            try:
                batch = client.batches.retrieve(batch_id)
            except (openai.APIConnectionError, openai.InternalServerError) as error:
                bar.set_postfix_str("the server does not answer; trying on")
                if bar.disable and time.monotonic() >= line_due:
                    print(f"the server does not answer ({error}); trying on", file=sys.stderr)
                    line_due = time.monotonic() + _LINE_SECONDS
            else:
                counts = batch.request_counts
                if counts is not None:
                    bar.total = counts.total or None
                    bar.update(counts.completed + counts.failed - bar.n)
                bar.set_postfix_str(batch.status)
                if bar.disable and time.monotonic() >= line_due:
                    print(shown(batch), file=sys.stderr, flush=True)
                    line_due = time.monotonic() + _LINE_SECONDS
                if batch.status in ENDED:
                    return batch
            time.sleep(seconds)
            seconds = min(seconds * 1.5, _LONGEST_SECONDS)


def fetch(client: openai.OpenAI, batch: Batch, output: Path, *, overwrite: bool) -> int:
    """Fetch what there is of a batch that has ended into `targets`; return the exit status: 0 if it
    has files.

    Raises:
        ClientError: it has not ended, or a file is there already.
    """
    if batch.status not in ENDED:
        raise ClientError(f"{shown(batch)}: it has not ended; --wait waits for it")
    check(output, overwrite=overwrite)
    files = targets(output)
    ids = (batch.output_file_id, batch.error_file_id)
    if not any(ids):
        raise ClientError(f"{shown(batch)}: it has no results")
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".fetch-") as folder:
        parts = []
        for name, file_id in zip(("output", "errors"), ids, strict=True):
            part = Path(folder) / name
            parts.append(part)
            if file_id is None:
                part.touch()
            else:
                download(client, file_id, part)
        if len(files) == 1:
            rows = chain.from_iterable(_rows(part) for part in parts)
            try:
                parquet.write(output, answer_rows.ANSWER_COLUMNS, rows)
            except ValueError as error:
                raise ClientError(str(error)) from error
        else:
            for part, file in zip(parts, [*files], strict=True):
                if file is output or part.stat().st_size:
                    os.replace(part, file)
                else:  # none has failed; what is there is of another batch
                    file.unlink(missing_ok=True)
                    files.remove(file)
    print(f"{shown(batch)}\n{', '.join(map(str, files))}")
    return 0


def download(client: openai.OpenAI, file_id: str, path: Path) -> None:
    """Write the content of a server's file to ``path``, piece by piece.

    Raises:
        ClientError: the server has it no more, or breaks off.
    """
    try:
        with client.files.with_streaming_response.content(file_id) as response:
            response.stream_to_file(path)
    except openai.NotFoundError as error:
        raise ClientError(f"{file_id} is gone: {said(error)}") from error
    except httpx.HTTPError as error:  # in the middle of it
        raise ClientError(f"the server broke off while it sent {file_id}: {error!r}") from error


def _rows(part: Path) -> Iterator[dict[str, Any]]:
    with part.open("rb") as lines:
        yield from answer_rows.rows_of(lines)
