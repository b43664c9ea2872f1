#!/usr/bin/env bash
# pyarrow: reading a Parquet file batch by batch keeps the whole file in memory, by default.
#
# Guess beforehand: `ParquetFile.iter_batches(batch_size=1000)`, "streaming batches", needs the memory of
# a row group at most, however large the file is.
#
# Seen (pyarrow 26.0.1, Python 3.11; a file of 80 MB in 80 row groups of 1 MB, local): while batches are
# taken and dropped, Arrow's own allocations grow up to the size of the file, and are freed with the
# last of them. `pre_buffer`, on by default, reads ahead and lets nothing go. With
# `pre_buffer=False`, or one row group after the other, they stay at some MB.
#
# What follows: pass `pre_buffer=False` where a file may be larger than memory.
#
# Exits with 0 if it is still so, 1 if it has changed. Takes seconds; needs Python 3.11 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyarrow==26.0.1
cat >seen.py <<'PYTHON'
import os
import sys

import pyarrow
from pyarrow import parquet

ROWS = 1000
with parquet.ParquetWriter("in.parquet", pyarrow.schema([("data", "binary")]), compression=None) as file:
    for _ in range(80):
        rows = [os.urandom(1000) for _ in range(ROWS)]
        file.write_table(pyarrow.table({"data": rows}))
size = os.path.getsize("in.parquet")


def most(batches):
    """The most bytes that Arrow holds while the batches are read."""
    found = 0
    for _ in batches:
        found = max(found, pyarrow.total_allocated_bytes())
    return found


def group_by_group(file):
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=100, row_groups=[group])


found = {
    "default": most(parquet.ParquetFile("in.parquet").iter_batches(batch_size=100)),
    "pre_buffer=False": most(
        parquet.ParquetFile("in.parquet", pre_buffer=False).iter_batches(batch_size=100)
    ),
    "group by group": most(group_by_group(parquet.ParquetFile("in.parquet"))),
}
print(f"pyarrow {pyarrow.__version__}, a file of {size / 1e6:.0f} MB")
for name, held in found.items():
    print(f"{name}: at most {held / 1e6:.1f} MB held")
default, *others = found.values()
sys.exit(0 if default > 0.9 * size and max(others) < 0.2 * size else 1)
PYTHON
venv/bin/python seen.py
