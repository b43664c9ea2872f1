#!/usr/bin/env bash
# A plugin installed below a package's name hides that package, if the package is installed editable.
#
# Guess beforehand: Python prefers a regular package (with `__init__.py`) to a namespace package
# (a folder without one), wherever they lie. So a wheel that adds `host/plugins/extra.py` beside an
# installed `host` does no harm, however `host` is installed.
#
# Seen (setuptools 84.2.1, pip 26.3, Python 3.11): that holds within one finder. An editable install
# whose layout needs setuptools' finder (here a `package_dir`) is found by an entry at the END of
# `sys.meta_path`. Python's path finder stands before it, meets the wheel's folder `host` in
# site-packages, and makes an empty namespace package of it: `import host` works, `host.__file__` is
# None, nothing of it is there. With `host` as a wheel the same plugin works. With an editable layout
# that needs only a path (`.pth`), it works as well.
#
# What follows for a plugin: install under a top-level name of its own.
#
# Exits with 0 if it is still so, 1 if it has changed. Takes a minute; needs Python 3.11 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p finder/code path/src/host plugin/host/plugins
for project in finder path; do
    echo 'VERSION = "1.0"' >$project/__init__.txt
done
mv finder/__init__.txt finder/code/__init__.py
mv path/__init__.txt path/src/host/__init__.py
echo 'NAME = "extra"' >plugin/host/plugins/extra.py
# project NAME PACKAGES [PACKAGE_DIR]
project() {
    cat <<TOML
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "$1"
version = "1.0"
[tool.setuptools]
packages = [$2]
${3:-}
TOML
}
project host '"host"' 'package-dir = {host = "code"}' >finder/pyproject.toml
project host '"host"' 'package-dir = {"" = "src"}' >path/pyproject.toml
project host-extra '"host.plugins"' >plugin/pyproject.toml

install() { venv/bin/pip install --quiet --no-deps --no-build-isolation "$@" 2>>log; }
look() {
    venv/bin/python - "$1" <<'PYTHON' | tee -a seen
import sys

import host

print(f"{sys.argv[1]:29} version {getattr(host, 'VERSION', None)}, file {bool(host.__file__)}")
PYTHON
}
look_at() { # WHAT PIP-ARGUMENTS...
    local what=$1
    shift
    rm -rf venv
    python3 -m venv venv
    venv/bin/python -m pip install --quiet --disable-pip-version-check pip==26.3 setuptools==84.2.1
    install "$@"
    look "$what"
    install ./plugin
    look "$what, plugin"
    rm -rf finder/build path/build plugin/build
}
look_at "wheel" ./finder
look_at "editable by a path" -e ./path
look_at "editable by a finder" -e ./finder
cat >expected <<'TEXT'
wheel                         version 1.0, file True
wheel, plugin                 version 1.0, file True
editable by a path            version 1.0, file True
editable by a path, plugin    version 1.0, file True
editable by a finder          version 1.0, file True
editable by a finder, plugin  version None, file False
TEXT
diff expected seen
