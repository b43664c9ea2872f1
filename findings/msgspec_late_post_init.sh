#!/usr/bin/env bash
# A `__post_init__` that is put on a msgspec Struct after the class was made is never called.
#
# Guess beforehand: `Class.__post_init__ = wrapper` works as it does for a dataclass, whose
# `__init__` looks the method up at each call. Plugins wrap constructors in this way.
#
# Seen (msgspec 0.22.0, Python 3.11): a Struct calls the `__post_init__` that its class statement
# had, or none, for ever. Assigning another one is accepted, `Class.__post_init__` and even
# `instance.__post_init__()` are the new one, and constructing does not call it. A subclass that
# defines it is called. `__init__` behaves in the same way: an assigned one is never called.
# SGLang 0.5.23 makes its server arguments a Struct and says that plugins are loaded early "so hooks
# on ServerArgs.__post_init__ fire": such a hook is applied and never fires.
#
# What follows for a plugin: subclass the Struct, or hook a method that is called by name.
#
# Exits with 0 if it is still so, 1 if it has changed. Takes seconds; needs Python 3.11 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check msgspec==0.22.0
cat >seen.py <<'PYTHON'
import dataclasses
import sys

import msgspec

calls = []


class Record(msgspec.Struct):
    size: int = 0

    def __post_init__(self):
        calls.append("own")


class Bare(msgspec.Struct):
    size: int = 0


@dataclasses.dataclass
class Data:
    size: int = 0

    def __post_init__(self):
        calls.append("own")


def wrapped(self):
    calls.append("assigned")


def constructor(self, *args, **kwargs):
    calls.append("assigned __init__")


class Below(Record):
    def __post_init__(self):
        calls.append("subclass")


def made(cls):
    calls.clear()
    cls(3)
    return list(calls)


for cls in (Data, Record, Bare):
    cls.__post_init__ = wrapped
found = {cls.__name__: made(cls) for cls in (Data, Record, Bare, Below)}
msgspec.json.decode(b'{"size": 3}', type=Record)
found["decoded"] = list(calls)[1:]
calls.clear()
Record().__post_init__()
found["called by name"] = list(calls)[-1:]
Bare.__init__ = constructor
found["__init__ of Bare"] = made(Bare)
for name, value in found.items():
    print(f"{name}: {value}")
expected = {
    "Data": ["assigned"],
    "Record": ["own"],
    "Bare": [],
    "Below": ["subclass"],
    "decoded": ["own"],
    "called by name": ["assigned"],
    "__init__ of Bare": [],
}
print(f"msgspec {msgspec.__version__}")
sys.exit(0 if found == expected else 1)
PYTHON
venv/bin/python seen.py
