"""autobatcher: chat completions that it gathers into a batch."""

import asyncio
import os

from autobatcher import BatchOpenAI
from cycle import MODEL, QUESTIONS, SEPARATED, Report, expect, reported
from openai.types.chat import ChatCompletion


async def cycle(report: Report) -> None:
    """Ask four times at once, once with a mistake; then list."""
    client = BatchOpenAI(
        api_key=os.environ["OPENAI_API_KEY"],
        base_url=os.environ["OPENAI_BASE_URL"],
        completion_window="24h",
        batch_size=5,
        batch_window_seconds=2.0,
        poll_interval_seconds=1.0,
        max_retries=0,
    )
    options = [
        {"temperature": 0},
        {"temperature": 0},
        {"temperature": 0, "extra_body": {"regex": SEPARATED}},
        {"temperature": -1},
    ]
    with report.step("upload", "create", "wait"):
        results = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": text}],
                    max_tokens=32,
                    **more,
                )
                for text, more in zip((*QUESTIONS, QUESTIONS[0]), options, strict=True)
            ),
            return_exceptions=True,
        )
    with report.step("results"):
        *answers, mistake = results
        good = [one for one in answers if isinstance(one, ChatCompletion)]
        report.answers = len(good)
        expect([one for one in answers if one not in good], [], "exceptions")
        expect(good[2].choices[0].message.content, SEPARATED, "the answer with a separator")
    with report.step("errors"):
        expect(isinstance(mistake, Exception), True, "the mistake is an exception")
        report.errors = 1
        report.note = f"a failed line: {str(mistake).split(' for ')[0]!r} (reads no error file)"
    with report.step("list"):
        page = await client.batches.list(limit=5)
        expect(page.data[0].status, "completed", "status")
    await client.close()


with reported("autobatcher") as report:
    asyncio.run(cycle(report))
