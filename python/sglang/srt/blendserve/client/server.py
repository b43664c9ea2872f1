"""A server with OpenAI's batch API, by OpenAI's client, and what goes wrong there in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import openai
from openai.types import Batch

DEFAULT = "http://127.0.0.1:30000"
INTERRUPTED = 130

ENDED = ("completed", "failed", "expired", "cancelled")
"""Statuses in which a batch changes no more."""


class ClientError(Exception):
    """A command cannot do what it was asked for; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which server is meant."""
    parser.add_argument(
        "--server",
        default=os.environ.get("OPENAI_BASE_URL", DEFAULT),
        metavar="URL",
        help="where it listens, with or without /v1 (default: $OPENAI_BASE_URL, else " + DEFAULT
        + ")",
    )  # fmt: skip
    parser.add_argument(
        "--api-key", metavar="KEY", help="default: $OPENAI_API_KEY; a server without one takes any"
    )


def connect(args: argparse.Namespace) -> openai.OpenAI:
    """Return a client for the server that ``args`` name; nothing is sent yet.

    Raises:
        ClientError: the URL is none.
    """
    url = args.server.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ClientError(f"--server {args.server} is no URL like {DEFAULT}")
    if not parts.path.endswith("/v1"):
        url += "/v1"
    key = args.api_key or os.environ.get("OPENAI_API_KEY") or "none"
    return openai.OpenAI(base_url=url, api_key=key, max_retries=4)


def in_one_line(name: str, work: Callable[[], int]) -> int:
    """Do ``work`` and return its exit status; 1 with a line where it fails, 130 after Ctrl-C."""
    try:
        return work()
    except ClientError as error:
        message = str(error)
    except openai.APIStatusError as error:
        message = f"the server says {error.status_code}: {said(error)}"
    except openai.APIConnectionError as error:
        message = f"the server does not answer: {error.__cause__ or error}. Is --server right?"
    except (openai.OpenAIError, OSError) as error:
        message = str(error)
    except KeyboardInterrupt:
        print(f"{name}: stopped.", file=sys.stderr)
        return INTERRUPTED
    print(f"{name}: {message}", file=sys.stderr)
    return 1


def said(error: openai.APIStatusError) -> str:
    """Return the message of an error that a server has answered."""
    body = error.body
    return str(body.get("message", error)) if isinstance(body, dict) else str(error)


def shown(batch: Batch) -> str:
    """Return a line about a batch."""
    counts = batch.request_counts
    done = (
        ""
        if counts is None
        else f"{counts.completed} done, {counts.failed} failed of {counts.total}"
    )
    reasons = [] if batch.errors is None else [one.message for one in batch.errors.data or ()]
    parts = [batch.id, batch.status, done, *(reason for reason in reasons[:1] if reason)]
    forecast = (batch.model_extra or {}).get("forecast")  # which other servers do not have
    if isinstance(forecast, dict) and isinstance(ends_at := forecast.get("ends_at"), int):
        ends = datetime.fromtimestamp(ends_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        late = ", after its window" if forecast.get("in_time") is False else ""
        parts.append(f"expected to end {ends}{late}")
    return "  ".join(part for part in parts if part)
