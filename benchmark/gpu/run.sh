#!/bin/bash
# Set up and measure in one command, on a machine with an NVIDIA GPU and no network:
#
#     bash benchmark/gpu/run.sh OUT [--wheels FOLDER] [options of bench.py]
#
# OUT: folder for results. FOLDER: a folder of wheels with a script `up.sh`, which, sourced, installs
# SGLang and what it needs and puts it on PYTHONPATH; without it sglang must be importable.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: run.sh OUT [--wheels FOLDER] [options of bench.py]}
shift
wheels=
if [ "${1:-}" = --wheels ]; then
  wheels=${2:?--wheels needs a folder}
  shift 2
fi
began=$(date +%s)
mkdir -p "$out"
if [ -n "$wheels" ]; then
  # shellcheck disable=SC1091
  . "$wheels/up.sh" || { echo "setting up from $wheels failed" >&2; exit 1; }
fi
# A copy of this package in Python's own folder for packages, unless it is installed already.
python3 "$here/install_delta.py" || exit 1
python3 "$here/bench.py" --out "$out" --began "$began" "$@"
code=$?
# Kernels that were compiled on the way, where the folder of wheels can keep them for the next time.
if [ "${SAVE_COMPILED:-0}" = 1 ] && declare -F savejit >/dev/null; then OUT=$out savejit; fi
exit $code
