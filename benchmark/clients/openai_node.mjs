// The official Node client. Prints what the Python scripts print, see cycle.py.

import { readFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";

const model = process.env.BATCH_MODEL;
const separated = "One\u2028two";
const installed = new URL("node_modules/openai/package.json", import.meta.url);
const { version } = JSON.parse(readFileSync(installed, "utf8"));
const report = { version, steps: [], answers: 0, errors: 0, note: "", failure: "" };

function expect(found, wanted, what) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${what}: ${a} instead of ${b}`);
}

function chat(id, text, more = {}) {
  const messages = [{ role: "user", content: text }];
  const body = { model, messages, max_tokens: 8, temperature: 0, ...more };
  return { custom_id: id, method: "POST", url: "/v1/chat/completions", body };
}

const jsonl = (requests) => requests.map((one) => JSON.stringify(one) + "\n").join("");
const parse = (text) => text.trimEnd().split("\n").map((one) => JSON.parse(one));

const client = new OpenAI({ maxRetries: 0 });

async function submit(requests) {
  const content = Buffer.from(jsonl(requests));
  const file = await client.files.create({
    file: await toFile(content, "lines.jsonl"),
    purpose: "batch",
  });
  return client.files.waitForProcessing(file.id, { pollInterval: 500 });
}

const create = (file) =>
  client.batches.create({
    input_file_id: file.id,
    endpoint: "/v1/chat/completions",
    completion_window: "24h",
  });

async function wait(id, wanted) {
  const end = Date.now() + 240_000;
  for (;;) {
    const batch = await client.batches.retrieve(id);
    if (["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
      expect(batch.status, wanted, "final status");
      return batch;
    }
    if (Date.now() > end) throw new Error(`still ${batch.status} after 240 s`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function cycle() {
  const file = await submit([
    chat("colour", "Name a colour."),
    chat("left\u2028right", "Name a bird."),
    chat("separated", "Name a river.", { regex: separated, max_tokens: 32 }),
    chat("river", "Name a river."),
    chat("bad", "Name a colour.", { temperature: -1 }),
  ]);
  report.steps.push("upload");
  let batch = await create(file);
  report.steps.push("create");
  batch = await wait(batch.id, "completed");
  report.steps.push("wait");

  const output = parse(await (await client.files.content(batch.output_file_id)).text());
  report.answers = output.length;
  const ids = output.map((one) => one.custom_id);
  expect(ids, ["colour", "left\u2028right", "separated", "river"], "answered lines");
  expect(output[2].response.body.choices[0].message.content, separated, "answer");
  report.steps.push("results");
  const errors = parse(await (await client.files.content(batch.error_file_id)).text());
  report.errors = errors.length;
  const failed = errors.map((one) => [one.custom_id, one.response.status_code]);
  expect(failed, [["bad", 400]], "failed lines");
  report.steps.push("errors");

  const listed = [];
  for await (const one of client.batches.list({ limit: 1 })) listed.push(one.id);
  expect(listed.includes(batch.id), true, "in the list");
  report.steps.push("list");
  const many = Array.from({ length: 300 }, (_, n) =>
    chat(`long-${n}`, `Count to ${n}.`, { max_tokens: 500 }),
  );
  const doomed = await create(await submit(many));
  expect((await client.batches.cancel(doomed.id)).status, "cancelling", "status");
  await wait(doomed.id, "cancelled");
  report.steps.push("cancel");
  expect((await client.files.delete(file.id)).deleted, true, "deleted");
  report.steps.push("delete");
}

try {
  await cycle();
} catch (error) {
  console.error(error);
  report.failure = `${error.name}: ${error.message}`.slice(0, 500);
}
console.log(JSON.stringify(report));
