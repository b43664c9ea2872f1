#!/usr/bin/env bash
# Hugging Face datasets: a column declared as Json() rounds numbers, even of a list in memory.
#
# Guess beforehand: `Features({"response": Json()})` is what is made for values of any shape, so what
# comes out is what `json.loads` gives for the same line.
#
# Seen (datasets 5.2.0, pandas 3.1.1, Python 3.11): shapes are kept, and numbers are not. A log
# probability of -0.12345678901234567 comes back as -0.12345678900000001, and -1.1234567890123457e-07
# as -1.123e-07: ten decimals are kept, so a small number has hardly any digit left. The same file
# by the loader "text" and `json.loads` is exact; `Dataset.from_list` of the values themselves is not.
#
# What follows: log probabilities and embeddings, which batch answers have, should be loaded as text or
# from a Parquet column of text.
#
# Exits with 0 if it is still so, 1 if it has changed. Takes a minute; needs Python 3.11 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6 huggingface_hub==1.33.0
cat >seen.py <<'PYTHON'
import json
import sys

import datasets
from datasets import Features, Json, load_dataset

values = [{"logprob": -0.12345678901234567}, {"top": {"a": -1.1234567890123457e-07}}, {"n": [1, "x"]}]
with open("lines.jsonl", "w") as file:
    file.writelines(json.dumps({"response": value}) + "\n" for value in values)

features = Features({"response": Json()})
common = {"data_files": "lines.jsonl", "split": "train", "cache_dir": "cache"}
found = {
    "json, Json()": load_dataset("json", features=features, **common)["response"][:],
    "text, json.loads": [json.loads(line)["response"] for line in load_dataset("text", **common)["text"]],
    "from_list, Json()": datasets.Dataset.from_list(
        [{"response": value} for value in values], features=features
    )["response"][:],
}
for name, got in found.items():
    print(f"{name}: {'exact' if got == values else got}")
print(f"datasets {datasets.__version__}")
as_seen = found["json, Json()"][2] == values[2] and found["json, Json()"][:2] != values[:2]
as_seen = as_seen and found["from_list, Json()"] == found["json, Json()"]
sys.exit(0 if as_seen and found["text, json.loads"] == values else 1)
PYTHON
HF_HUB_OFFLINE=1 HF_HOME="$work/home" venv/bin/python seen.py
