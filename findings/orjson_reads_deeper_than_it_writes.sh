#!/usr/bin/env bash
# orjson cannot write again what it has just read: it reads four times as deep as it writes.
#
# Guess beforehand: `dumps(loads(text))` works for whatever text `loads` takes, as with Python's own
# json. A service that passes a request's body on, or keeps it as JSON, relies on that.
#
# Seen (orjson 3.13.0, Python 3.11): `loads` takes arrays and objects nested 1,024 deep, and raises
# beyond; `dumps` takes 254 levels, and raises "Recursion limit reached" (a TypeError) beyond. In
# between a text is valid input and no possible output. Python's json writes all that orjson reads.
#
# What follows: catch TypeError where what was read is written, too; a body of that depth, a JSON
# schema say, is otherwise an error of the whole file instead of one line's.
#
# Exits with 0 if it is still so, 1 if it has changed. Takes seconds; needs Python 3.11 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check orjson==3.13.0
cat >seen.py <<'PYTHON'
import json
import sys

import orjson


def deepest(works, most=2000):
    """The largest depth at which ``works`` raises nothing."""
    for depth in range(1, most):
        try:
            works(depth)
        except (TypeError, ValueError):
            return depth - 1
    return most


def read(depth):
    return orjson.loads("[" * depth + "]" * depth)


def read_object(depth):
    return orjson.loads('{"a":' * depth + "1" + "}" * depth)


found = {
    "arrays read": deepest(read),
    "objects read": deepest(read_object),
    "arrays written": deepest(lambda depth: orjson.dumps(read(depth))),
    "objects written": deepest(lambda depth: orjson.dumps(read_object(depth))),
}
sys.setrecursionlimit(10_000)
json.dumps(read(found["arrays read"]))  # Python's own writes them all
for name, depth in found.items():
    print(f"{name}: {depth} deep")
print(f"orjson {orjson.__version__}")
sys.exit(0 if [*found.values()] == [1024, 1024, 254, 254] else 1)
PYTHON
venv/bin/python seen.py
