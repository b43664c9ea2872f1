"""``sglang-blendserve run`` with a real engine and a real model.

    pytest test/run/test_run.py -m engine

Four engine starts. The first answers a batch with every kind of bad line under fcfs. The others
answer the good lines under other policies, in one run that is broken off twice: its scheduler is
killed, then it gets Ctrl-C. In float32 with greedy decoding both batches must agree.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from run_process import Batch, scheduler_of

from sglang.srt.blendserve.job_ids import parse_rid
from sglang.srt.blendserve.run.failure import FAILED, INTERRUPTED

pytestmark = pytest.mark.engine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def chat(text: str, **body: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "You are a helpful assistant who answers briefly."},
        {"role": "user", "content": text},
    ]
    return {"messages": messages, "temperature": 0, **body}


def line(custom_id: str, body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    url = CHAT if "messages" in body else COMPLETIONS
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **changes}


GOOD = [
    line(f"c{i}", chat(f"What is {i} plus {3 * i}?", max_tokens=8 + 5 * (i % 5)))
    if i % 2
    else line(
        f"p{i}",
        {
            "prompt": f"Some facts about the number {i}: first,",
            "temperature": 0,
            "max_tokens": 6 + 7 * (i % 4),
            "ignore_eos": i % 4 == 0,
        },
    )
    for i in range(48)
]
FORMS = [
    line(
        "several",
        {"prompt": ["One two", "Three four five"], "temperature": 0, "max_tokens": 4, "n": 2},
    ),
    line("n", chat("Say hi", n=3, max_tokens=5)),
    line("logprobs", {"prompt": "One two", "max_tokens": 3, "logprobs": 2, "echo": True}),
    line(
        "schema",
        chat(
            "Is the sky blue?",
            max_tokens=16,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}},
            },
        ),
    ),
    line("long answer", {"prompt": "x", "max_tokens": 5000, "stop": [" "]}),  # more than the pool
    line("own rid", chat("Say hi", max_tokens=2, rid="mine", stream=False)),
    line("nulls", chat("Say hi", max_tokens=2, n=None, logprobs=None, stop=None, tools=None)),
    line("any model", chat("Say hi", max_tokens=2, model="default")),
    line("regex", chat("Yes or no?", max_tokens=4, regex="yes|no")),
    line("ebnf", chat("Yes or no?", max_tokens=4, ebnf='start: "yes" | "no"')),
    line("json object", chat("JSON", max_tokens=4, response_format={"type": "json_object"})),
    line("bias", chat("Say hi", max_tokens=3, logit_bias={"5": -100, "9": 100})),
    line("stop tokens", chat("Say hi", max_tokens=4, min_tokens=2, stop_token_ids=[9, 10])),
    line("stop_regex", chat("Say hi", max_tokens=4, stop_regex=[r"[.!?]\s*$", "a|b"])),
    line(
        "sampling",
        chat("Say hi", max_tokens=4, seed=7, top_k=5, top_p=0.9, min_p=0.01)
        | {"temperature": 0.8, "repetition_penalty": 1.1, "presence_penalty": 0.5},
    ),
    line("top_logprobs", chat("Say hi", max_tokens=2, logprobs=True, top_logprobs=20)),
    line("ids", {"prompt": [[1, 2, 3], [4]], "max_tokens": 2}),
    line("salt", chat("Say hi", max_tokens=2, cache_salt="s", extra_key="k", user="me")),
]
REFUSED: dict[str, dict[str, Any]] = {
    # custom_id -> a body that its endpoint refuses: status 400, and nobody else notices
    "longer than the pool": {"prompt": "x " * 3995},
    "longer than the context": {"prompt": "x " * 9000},
    "empty": {"prompt": ""},
    "one empty": {"prompt": ["", "a"]},
    "no messages": {"messages": []},
    "messages of text": {"messages": ["hi"]},
    "unknown role": {"messages": [{"role": "alien", "content": "hi"}]},
    "image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
    "wrong type": chat("hi", temperature="hot"),
    "negative": chat("hi", max_tokens=-5),
    "over the context": chat("hi", max_tokens=50_000),
    "unknown adapter": chat("hi", lora_path="nope"),
    "bad schema": chat("hi", regex="("),
    "form of the answer": chat("hi", response_format="json"),
    "template arguments": chat("hi", chat_template_kwargs={"tools": []}),
    "content": {"messages": [{"role": "user", "content": None}]},
    "stop": chat("hi", stop=5),
    "prompts": {"prompt": ["a", None]},
    "no parser": chat("hi", tools=[{"type": "function", "function": {"name": "f"}}]),
}  # fmt: skip
BAD_LINES: list[tuple[bytes, str, str | None]] = [
    # what stands in the file, code, custom_id
    (b"nonsense", "invalid_json_line", None),
    (b'{"custom_id": "\xff"}', "invalid_json_line", None),
    (json.dumps(line("c1", chat("again"))).encode(), "duplicate_custom_id", "c1"),
    (json.dumps({"custom_id": 7}).encode(), "invalid_type", None),
    (json.dumps({"method": "POST"}).encode(), "missing_required_parameter", None),
    (json.dumps(line("url", chat("hi"), url="/v1/x")).encode(), "unsupported_url", "url"),
    (json.dumps(line("get", chat("hi"), method="GET")).encode(), "unsupported_method", "get"),
    (
        json.dumps(line("stream", chat("hi", stream=True))).encode(),
        "streaming_unsupported",
        "stream",
    ),
    (json.dumps(line("n0", chat("hi", n=0))).encode(), "invalid_value", "n0"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, model: str) -> Batch:
    """A batch of good and bad lines, with all that a file may have between them, under fcfs."""
    batch = Batch(tmp_path_factory.mktemp("mixed"), model)
    refused = [line(name, body) for name, body in REFUSED.items()]
    good = [json.dumps(x).encode() for x in (*GOOD, *FORMS, *refused)]
    half = len(good) // 2
    rows = [*good[:half], b"", *(row for row, _, _ in BAD_LINES), b" \t", *good[half:]]
    (batch.folder / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
    process = batch.start("--policy", "fcfs")
    assert batch.wait(process) == 0, batch.printed
    return batch


def test_every_line_has_one_result(mixed: Batch) -> None:
    output, errors = mixed.results(mixed.output), mixed.results(mixed.errors)
    answered = Counter(result["custom_id"] for result in output)
    assert answered == Counter(x["custom_id"] for x in (*GOOD, *FORMS))
    assert len(errors) == len(REFUSED) + len(BAD_LINES)
    ids = {result["id"] for result in (*output, *errors)}
    assert len(ids) == len(output) + len(errors)


def test_bad_lines_carry_their_number(mixed: Batch) -> None:
    rows = (mixed.folder / "in.jsonl").read_bytes().split(b"\r\n")
    expected = [(code, name, rows.index(row) + 1) for row, code, name in BAD_LINES]
    found = [
        (result["error"]["code"], result["custom_id"], result["error"]["line"])
        for result in mixed.results(mixed.errors)
        if result["error"]
    ]
    assert found == expected
    for result in mixed.results(mixed.errors):
        if result["error"]:
            assert result["response"] is None
            assert result["error"]["message"].startswith(f"Line {result['error']['line']}: ")


def test_refused_requests_carry_status_and_line(mixed: Batch) -> None:
    rows = (mixed.folder / "in.jsonl").read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\r\n")
    refused = {r["custom_id"]: r for r in mixed.results(mixed.errors) if r["response"]}
    assert set(refused) == set(REFUSED)
    for name, result in refused.items():
        error = result["response"]["body"]["error"]
        row = json.dumps(line(name, REFUSED[name])).encode()
        assert (result["response"]["status_code"], result["error"]) == (400, None), name
        assert error["line"] == rows.index(row) + 1
        assert error["message"].startswith(f"Line {error['line']}: ")


def test_answers_have_the_endpoint_s_form(mixed: Batch) -> None:
    bodies = {r["custom_id"]: r["response"]["body"] for r in mixed.results(mixed.output)}
    assert bodies["c1"]["object"] == "chat.completion"
    ChatCompletion.model_validate(bodies["c1"])  # as OpenAI's clients do
    assert bodies["p0"]["object"] == "text_completion"
    assert bodies["p0"]["usage"]["completion_tokens"] == 6
    assert [c["index"] for c in bodies["several"]["choices"]] == [0, 1, 2, 3]
    texts = [c["text"] for c in bodies["several"]["choices"]]
    assert (texts[0], texts[2]) == (texts[1], texts[3])
    assert len({c["message"]["content"] for c in bodies["n"]["choices"]}) == 1
    assert len(bodies["n"]["choices"]) == 3
    assert len(bodies["logprobs"]["choices"][0]["logprobs"]["top_logprobs"]) > 3
    assert json.loads(bodies["schema"]["choices"][0]["message"]["content"]) in ("yes", "no")
    assert len({body["id"] for body in bodies.values()}) == len(bodies)


def test_all_requests_are_one_offline_job(mixed: Batch) -> None:
    results = mixed.results(mixed.output) + mixed.results(mixed.errors)
    marks = [parse_rid(r["response"]["request_id"]) for r in results if r["response"]]
    total = len(GOOD) + len(FORMS) + len(REFUSED)
    assert len({mark.job for mark in marks if mark}) == 1
    assert len({mark.index for mark in marks if mark}) == len(marks) == total


def test_summary(mixed: Batch) -> None:
    summary, output = mixed.summary, mixed.results(mixed.output)
    usage = [result["response"]["body"]["usage"] for result in output]
    assert summary["input_tokens"] == sum(u["prompt_tokens"] for u in usage)
    assert summary["output_tokens"] == sum(u["completion_tokens"] for u in usage)
    assert summary["policy"] == "fcfs"
    assert summary["finished"]
    assert summary["requests"] == summary["completed"] + summary["failed"]
    assert summary["completed"] == len(output)
    assert summary["resumed"] == 0
    assert 0 <= summary["prefix_sharing"] <= summary["prefix_sharing_optimum"] < 1
    assert summary["prefix_sharing"] == summary["cached_tokens"] / summary["input_tokens"]
    assert summary["seconds"] > 0
    assert summary["tokens_per_second"] > 0
    assert summary["planned_density"] > 0
    assert summary["measured_density"] > 0
    assert summary["note"] is None


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory, model: str) -> Batch:
    """The good lines and one bad one, broken off twice and finished. Checks each step."""
    batch = Batch(tmp_path_factory.mktemp("broken"), model)
    rows = [*(json.dumps(x) for x in GOOD), "nonsense"]
    (batch.folder / "in.jsonl").write_text("\n".join(rows))
    few = ("--max-running-requests", "3")  # so that there is a middle to be broken off in

    process = batch.start(*few, "--policy", "blendserve", "--max-engine-restarts", "0")
    batch.wait_for_results(process, 6)
    scheduler_of(process).kill()
    assert batch.wait(process) == FAILED, batch.printed
    assert "engine died" in batch.printed
    first = batch.names

    process = batch.start(*few, "--policy", "lpm", "--resume")
    batch.wait_for_results(process, len(first) + 6)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    assert batch.wait(process) == INTERRUPTED, batch.printed
    assert "--resume" in batch.printed
    assert "Traceback" not in batch.printed
    second = batch.names
    assert 6 <= len(first) < len(second) < len(GOOD)
    assert second[: len(first)] == first
    assert not batch.summary["finished"]

    process = batch.start("--policy", "lpm", "--resume")
    assert batch.wait(process) == 0, batch.printed
    assert batch.names[: len(second)] == second
    return batch


def test_broken_off_and_resumed_gives_each_line_once(broken_off: Batch) -> None:
    assert Counter(broken_off.names) == Counter(x["custom_id"] for x in GOOD)
    [error] = broken_off.results(broken_off.errors)
    assert error["error"]["line"] == len(GOOD) + 1
    summary = broken_off.summary
    assert (summary["completed"], summary["failed"]) == (len(GOOD), 1)
    assert summary["finished"]
    assert 12 <= summary["resumed"] < len(GOOD)


def test_broken_off_runs_are_one_job(broken_off: Batch) -> None:
    marks = [parse_rid(r["response"]["request_id"]) for r in broken_off.results(broken_off.output)]
    assert len({mark.job for mark in marks if mark}) == 1


def test_greedy_answers_do_not_depend_on_the_policy(mixed: Batch, broken_off: Batch) -> None:
    def answers(batch: Batch) -> dict[str, Any]:
        return {
            result["custom_id"]: [
                (choice.get("text", choice.get("message")), choice["finish_reason"])
                for choice in result["response"]["body"]["choices"]
            ]
            for result in batch.results(batch.output)
        }

    expected = answers(mixed)
    assert answers(broken_off) == {x["custom_id"]: expected[x["custom_id"]] for x in GOOD}


def test_nothing_is_left_to_do_without_an_engine(broken_off: Batch) -> None:
    before = broken_off.output.read_bytes()
    process = broken_off.start("--resume")
    assert broken_off.wait(process) == 0
    assert "engine" not in broken_off.printed.splitlines()[0]
    assert "Starting the engine" not in broken_off.printed
    assert broken_off.output.read_bytes() == before
