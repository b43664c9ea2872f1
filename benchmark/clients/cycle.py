"""What the scripts of the Python clients share: the lines to send, and the report to print.

A script does what its client offers and prints one line of JSON, the last one of its output:
``version``, ``steps`` (passed, in order), ``answers`` and ``errors`` (lines that came back),
``note`` and, where something went wrong, ``failure``. `run.py` sets the environment:
``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and ``BATCH_MODEL``. A client must need no more than that.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

MODEL = os.environ["BATCH_MODEL"]
WAIT_SECONDS = 240.0
TERMINAL = ("completed", "failed", "expired", "cancelled")

# Python's str.splitlines() splits here, and several clients read results with it. A server that
# wrote it raw would break a line of JSON in two
SEPARATOR = "\u2028"
SEPARATED = f"One{SEPARATOR}two"
SEPARATED_ID = f"left{SEPARATOR}right"

QUESTIONS = ("Name a colour.", "Name a bird.", "Name a river.")


class Report:
    """What a client has done so far."""

    def __init__(self, package: str) -> None:
        self.version = version(package)
        self.steps: list[str] = []
        self.answers = 0
        self.errors = 0
        self.note = ""

    @contextmanager
    def step(self, *names: str) -> Iterator[None]:
        """Count these steps, which the client does in one call, as done, unless it raises."""
        yield
        self.steps.extend(names)


@contextmanager
def reported(package: str) -> Iterator[Report]:
    """Print the report at the end, also when the client fails; nothing is raised."""
    report = Report(package)
    failure = ""
    try:
        yield report
    except Exception as error:
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}"[:500]
    print(json.dumps({**vars(report), "failure": failure}), flush=True)


def expect(found: object, wanted: object, what: str) -> None:
    """Raise AssertionError, with both values, unless they are equal."""
    if found != wanted:
        raise AssertionError(f"{what}: {found!r} instead of {wanted!r}")


def chat(custom_id: str, text: str, **more: Any) -> dict[str, Any]:
    """Return one request of a chat completion."""
    message = {"role": "user", "content": text}
    body = {"model": MODEL, "messages": [message], "max_tokens": 8, "temperature": 0}
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body | more,
    }


def lines() -> list[dict[str, Any]]:
    """Return four requests that are answered, and a last one that is not.

    One has the separator in its ``custom_id``, one must answer with it.
    """
    return [
        chat("colour", QUESTIONS[0]),
        chat(SEPARATED_ID, QUESTIONS[1]),
        chat("separated", QUESTIONS[2], regex=SEPARATED, max_tokens=32),
        chat("river", QUESTIONS[2]),
        chat("bad", QUESTIONS[0], temperature=-1),
    ]


ANSWERED = ["colour", SEPARATED_ID, "separated", "river"]


def long_lines() -> list[dict[str, Any]]:
    """Return requests that take minutes: a batch to be cancelled."""
    return [chat(f"long-{n}", f"Count to {n}.", max_tokens=500) for n in range(300)]


def jsonl(requests: list[dict[str, Any]]) -> bytes:
    """Return the content of a batch's input file."""
    return b"".join(json.dumps(one).encode() + b"\n" for one in requests)


def check_output(text: str, report: Report) -> None:
    """Check an output file of `lines`, read as the clients read it."""
    results = [json.loads(one) for one in text.splitlines()]
    report.answers = len(results)
    expect([one["custom_id"] for one in results], ANSWERED, "answered lines")
    contents = [one["response"]["body"]["choices"][0]["message"]["content"] for one in results]
    expect(contents[2], SEPARATED, "the answer with a separator")
    expect(all(contents), True, "answers have text")


def check_errors(text: str, report: Report) -> None:
    """Check an error file of `lines`."""
    results = [json.loads(one) for one in text.splitlines()]
    report.errors = len(results)
    found = [(one["custom_id"], one["response"]["status_code"]) for one in results]
    expect(found, [("bad", 400)], "failed lines")


def wait(status: Callable[[], str], wanted: str) -> None:
    """Return when ``status()`` is the wanted one; AssertionError when it ends otherwise."""
    end = time.monotonic() + WAIT_SECONDS
    while (found := status()) not in TERMINAL:
        if time.monotonic() > end:
            raise TimeoutError(f"still {found} after {WAIT_SECONDS:.0f} s")
        time.sleep(1)
    expect(found, wanted, "final status")
