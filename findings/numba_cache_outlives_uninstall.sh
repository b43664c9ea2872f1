#!/usr/bin/env bash
# After `pip uninstall`, a package whose functions numba has cached can still be imported, empty.
#
# Guess beforehand: pip removes a package's folder with its `__pycache__`, so importing it fails.
#
# Seen (numba 0.68.1, pip 26.3, Python 3.11): `@njit(cache=True)` writes `.nbi` and `.nbc` files
# into the package's own `__pycache__`. pip removes what it has installed and the `.pyc` files, leaves
# these, and so the package's folder. `import` then finds it as a namespace package: no error, no
# names. An `except ImportError` around an optional dependency no longer notices that it is gone.
#
# What follows for a package with cached loops: say where the cache goes (`NUMBA_CACHE_DIR` before
# numba is imported, or a cache locator of its own).
#
# Exits with 0 if it is still so, 1 if it has changed. Takes a minute; needs Python 3.11 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check pip==26.3
venv/bin/pip install --quiet --disable-pip-version-check numba==0.68.1 setuptools==84.2.1
mkdir -p source/loops
cat >source/pyproject.toml <<'TOML'
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "loops"
version = "1.0"
[tool.setuptools]
packages = ["loops"]
TOML
cat >source/loops/__init__.py <<'PYTHON'
from numba import njit


@njit(cache=True)
def total(count):
    result = 0
    for index in range(count):
        result += index
    return result
PYTHON
venv/bin/pip install --quiet --no-deps --no-build-isolation ./source
venv/bin/python -c 'import loops; print("installed:", loops.total(10))'
venv/bin/pip uninstall --quiet --yes loops
site=$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
venv/bin/pip list --format freeze 2>/dev/null | grep -c '^loops=' | sed 's/^/pip lists it: /' || true
(cd "$site" && find loops -type f | sed 's/\.total-.*\.\(nb[ic]\)$/.total-....\1/;s/^/left: /' | sort)
venv/bin/python - <<'PYTHON'
import sys

try:
    import loops
except ImportError as error:
    print("import:", error)
    sys.exit(1)
print("import: works; file", loops.__file__, "; has total:", hasattr(loops, "total"))
sys.exit(0 if loops.__file__ is None and not hasattr(loops, "total") else 1)
PYTHON
