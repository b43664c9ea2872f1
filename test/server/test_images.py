"""Batches of lines with images, on a real server with a tiny model that sees.

pytest test/server/test_images.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import jsonl
from server_process import running
from test_planned_batches import flags
from test_server import finish, lines_of, submit
from tiny_vision_model import TOKENS_AN_IMAGE, as_address, png, write_tiny_vision_model

from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts, Prompt

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
QUESTIONS = ("What is this?", "Which colour is it?", "Is it large?")
IMAGES = 4


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    return write_tiny_vision_model(tmp_path_factory.mktemp("seeing"), model_path)


def chat(question: str, *sources: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": source}} for source in sources]
    content = [*parts, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0}


def line(custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def test_images_of_lines_are_seen_as_those_of_online_requests(
    tmp_path: Path, seeing: Path, cpu_engine_kwargs: dict[str, Any]
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for number in range(IMAGES):
        (root / f"{number}.png").write_bytes(png(number))
    (tmp_path / "secret.png").write_bytes(png(9))
    held = [as_address(png(number)) for number in range(IMAGES)]
    asked = {
        f"{number}-{question[:7]}": (number, question)
        for question in QUESTIONS
        for number in range(IMAGES)
    }
    lines = [
        line(name, chat(question, held[number] if number % 2 else f"{number}.png"))
        for name, (number, question) in asked.items()
    ]
    lines.append(line("two", chat("Which is larger?", held[0], held[3])))
    lines.append(line("none", chat("Hello!")))
    refused = {
        "outside": "../secret.png",
        "elsewhere": "https://images.example.com/x.png",
        "no image": as_address(b"GIF89a and nothing else"),
    }
    lines += [line(name, chat("What is this?", source)) for name, source in refused.items()]
    given = ["--model-path", str(seeing), "--schedule-policy", "blendserve"]
    given += ["--max-total-tokens", "2000", "--dtype", "float32", "--random-seed", "1"]
    given += ["--batch-dir", str(tmp_path / "batches"), "--batch-max-in-flight", "5"]
    given += ["--blendserve-media-root", str(root), "--context-length", "1024"]
    given += ["--enable-multimodal"]
    with running([*given, *flags(cpu_engine_kwargs)], tmp_path / "log") as server:
        client = server.client()
        batch = finish(client, submit(client, jsonl(lines), CHAT).id)
        assert batch.status == "completed", server.tail()
        output = {
            one["custom_id"]: one["response"]["body"]
            for one in lines_of(client, batch.output_file_id)
        }
        errors = {
            one["custom_id"]: one["response"]["body"]["error"]
            for one in lines_of(client, batch.error_file_id)
        }
        assert set(output) == {*asked, "two", "none"}, server.tail()
        assert set(errors) == set(refused)
        for error in errors.values():
            assert error["param"] == "messages.0.content.0.image_url.url"
        assert "outside of --blendserve-media-root" in errors["outside"]["message"]
        assert "no host is allowed" in errors["elsewhere"]["message"]
        assert "no image that can be read" in errors["no image"]["message"]
        texts = set()
        for name, (number, question) in asked.items():
            online = client.chat.completions.create(model="default", **chat(question, held[number]))
            assert text_of(output[name]) == online.choices[0].message.content
            assert output[name]["usage"]["prompt_tokens"] == online.usage.prompt_tokens
            texts.add(text_of(output[name]))
        assert len(texts) > len(QUESTIONS)  # the images make a difference
        with_two = client.chat.completions.create(
            model="default", **chat("Which is larger?", held[0], held[3])
        )
        assert text_of(output["two"]) == with_two.choices[0].message.content
    prompts = prompts_of(seeing, root, lines)
    for name, body in output.items():
        assert prompts[name].length == body["usage"]["prompt_tokens"], name
    first, second, other = (
        prompts[name].tokens for name in ("1-What is", "1-Which c", "3-What is")
    )
    begin = int(np.flatnonzero(first != other)[0])
    alike = int(np.flatnonzero(first[: second.size] != second[: first.size])[0])
    assert alike >= begin + TOKENS_AN_IMAGE  # one image is one prefix, and another is another
    assert (first != other).sum() == TOKENS_AN_IMAGE
    assert prompts["none"].exact
    assert not any(prompts[name].exact for name in asked)


def prompts_of(model: Path, root: Path, lines: list[dict[str, Any]]) -> dict[str, Prompt]:
    """What is planned of each line that is not refused."""
    engine = EnginePrompts.of(
        str(model), ["--enable-multimodal", "--blendserve-media-root", str(root)]
    )
    given = [BatchLine(line=number, **one) for number, one in enumerate(lines, 1)]
    rendered = engine.render_all(given)
    return {
        one.custom_id: found[0]
        for one, found in zip(given, rendered, strict=True)
        if isinstance(found, list)
    }


def text_of(body: dict[str, Any]) -> str:
    text: str = body["choices"][0]["message"]["content"]
    return text
