"""A batch of embeddings through a real server whose model embeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from scripted import jsonl
from server_process import running
from test_server import command, finish, lines_of, submit  # noqa: F401

pytestmark = pytest.mark.engine


def line(custom_id: str, text: str | list[str], **more: Any) -> dict[str, Any]:
    body = {"model": "default", "input": text} | more
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def test_a_batch_of_embeddings(command: list[str], tmp_path: Path) -> None:  # noqa: F811
    texts = {f"text-{n}": f"Item {n % 5} of list {n // 5}. " * (1 + n % 9) for n in range(60)}
    lines = [line(name, text) for name, text in texts.items()]
    lines += [line("two", ["One.", "Two."]), line("bad", "x", dimensions="many")]
    flags = [*command, "--is-embedding", "--batch-dir", str(tmp_path / "batches")]
    with running(flags, tmp_path / "log") as server:
        client = server.client()
        batch = finish(client, submit(client, jsonl(lines), "/v1/embeddings").id)
        assert batch.status == "completed", server.tail()
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (62, 61, 1)
        assert [one["custom_id"] for one in lines_of(client, batch.error_file_id)] == ["bad"]
        lines = lines_of(client, batch.output_file_id)
        found = {one["custom_id"]: one["response"]["body"]["data"] for one in lines}
        assert len(found["two"]) == 2
        for name in ("text-0", "text-17", "text-59"):
            alone = client.embeddings.create(
                model="default", input=texts[name], encoding_format="float"
            )
            assert np.allclose(found[name][0]["embedding"], alone.data[0].embedding, atol=1e-4)
        # A chat batch has no place on a server that embeds.
        with pytest.raises(openai.BadRequestError, match=r"it does .*/v1/embeddings"):
            submit(client, jsonl([line("a", "b")]), "/v1/chat/completions")
