#!/usr/bin/env bash
# Make .venv with everything this repository needs: SGLang, its CPU kernels or its GPU packages,
# the tools for tests and plots, and this package in editable form. Safe to run again and again:
# it works only when a lock file, pyproject.toml or sgl-kernel/ changed since the last run.
#
# Environment:
#   PYTHON             the Python to use (default: the first of python3.11, 3.12, 3.13, python3 that fits)
#   BLENDSERVE_DEVICE  cpu or cuda (default: cuda when nvidia-smi lists a GPU)
#   DEBUG=1            show every command
set -Eeuo pipefail
[ -z "${DEBUG:-}" ] || set -x
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SGLANG=sglang==0.5.17
VENV=.venv
STAMP=$VENV/.installed

say() { printf 'install: %s\n' "$*"; }
die() {
    printf 'install: %s\n' "$@" >&2
    exit 3
}
trap '[ $? = 3 ] || echo "install: failed at line $LINENO; DEBUG=1 make install shows every command" >&2' ERR

device() {
    case "${BLENDSERVE_DEVICE:-}" in
    cpu | cuda) echo "$BLENDSERVE_DEVICE" ;;
    "") if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then echo cuda; else echo cpu; fi ;;
    *) die "BLENDSERVE_DEVICE is '$BLENDSERVE_DEVICE'; it must be cpu or cuda" ;;
    esac
}

# Everything whose change means that the environment is out of date.
fingerprint() {
    {
        echo "$1 $PWD" # editable installs hold the path
        cat requirements/*.txt pyproject.toml scripts/install.sh
        find sgl-kernel -type f \( -name '*.toml' -o -name '*.py' -o -name '*.cpp' -o -name '*.h' \) \
            -not -path '*/build/*' -print0 | LC_ALL=C sort -z | xargs -0 cat
    } | sha256sum | cut -d' ' -f1
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if fits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "needs Python 3.11, 3.12 or 3.13; found $("${PYTHON:-python3}" --version 2>&1 || true)" \
        "Debian 12:    apt-get install python3.11 python3.11-venv" \
        "Ubuntu 24.04: apt-get install python3.12 python3.12-venv" \
        "then run this again (PYTHON=/path/to/python3.12 chooses one by hand)"
}

# check_disk FOLDER GIGABYTES WHAT
check_disk() {
    local folder=$1
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    local free
    free=$(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1e6)}')
    [ "$free" -ge "$2" ] || die "needs about $2 GB of free disk in $folder for $3; there are $free GB"
}

make_venv() {
    local python=$1
    if [ -x $VENV/bin/python ] && ! { fits $VENV/bin/python && $VENV/bin/python -m pip --version >/dev/null 2>&1; }; then
        say "$VENV is broken or has another Python; making it anew"
        rm -rf $VENV
    fi
    [ ! -x $VENV/bin/python ] || return 0
    "$python" -c 'import venv, ensurepip' 2>/dev/null || die \
        "$python has no venv module; on Debian and Ubuntu:" \
        "apt-get install $(basename "$(readlink -f "$python")")-venv"
    say "making $VENV with $("$python" --version)"
    "$python" -m venv $VENV
}

# Installs with uv, whose cache is shared by all clones; with pip where uv is not to be had.
install_packages() {
    if [ -n "${uv:-}" ]; then
        local quiet=--quiet
        [ ! -t 2 ] || quiet=
        if $VENV/bin/python -m uv pip install $quiet --python $VENV/bin/python "$@"; then return; fi
        say "uv could not install them (its words above); trying pip"
        uv=
    fi
    $VENV/bin/python -m pip install --quiet --disable-pip-version-check "$@" ||
        die "pip could not install (its words above): $*" "is the package registry reachable?"
}

get_uv() {
    $VENV/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt ||
        { say "no uv; pip does the work (slower, and it downloads again for every clone)"; return 0; }
    uv=yes
    # uv does not read pip's configuration; tell it where this machine's index is.
    local index
    index=${PIP_INDEX_URL:-$($VENV/bin/python -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-true}"
    local cache
    cache=$($VENV/bin/python -m uv cache dir 2>/dev/null || echo "$VENV")
    mkdir -p "$cache"
    if [ "$(stat -c %d "$cache")" != "$(stat -c %d $VENV)" ]; then
        # Links do not cross file systems: packages are copied, and need room in both.
        check_disk "$cache" "$1" "the package cache"
        export UV_LINK_MODE=copy
    fi
}

main() {
    [ "$(uname -s)" = Linux ] || die "SGLang runs on Linux; this is $(uname -s)"
    local device want python started=$SECONDS gigabytes=7
    device=$(device)
    want=$(fingerprint "$device")
    if [ "$(cat $STAMP 2>/dev/null || true)" = "$device $want" ]; then
        say "$VENV is up to date ($device)"
        return
    fi
    exec 9<pyproject.toml && flock 9 # one installation at a time

    [ "$device" = cpu ] || gigabytes=11
    if [ "$device" = cpu ] && [ "$(uname -m)" != x86_64 ]; then
        die "requirements/cpu.txt is for x86-64; this is $(uname -m)"
    fi
    local before
    before=$(cut -d' ' -f1 $STAMP 2>/dev/null || echo "$device")
    if [ "$before" != "$device" ]; then
        say "$VENV was made for $before; making it anew for $device"
        rm -rf $VENV
    fi
    rm -f $STAMP
    python=$(find_python)
    compgen -G "$VENV/lib/python*/site-packages/torch" >/dev/null || check_disk "$PWD" "$gigabytes" "$VENV"
    make_venv "$python"
    get_uv "$gigabytes"

    if [ "$device" = cuda ]; then
        say "GPU found: installing $SGLANG with all its dependencies (9 GB unpacked, about 2 minutes)"
        install_packages "$SGLANG" "setuptools>=77,<82"
    else
        say "no NVIDIA GPU: installing $SGLANG for the CPU from requirements/cpu.txt"
        say "(2.9 GB to download the first time, 5.4 GB unpacked: 1 minute at 100 MB/s; seconds from uv's cache)"
        command -v c++ >/dev/null || say "no C++ compiler: sgl-kernel will use torch alone, slower (apt-get install g++)"
        install_packages --no-deps -r requirements/cpu.txt
    fi
    say "installing the tools for tests and plots, and this package"
    install_packages --no-deps -r requirements/dev.txt
    if [ "$device" = cpu ]; then install_packages --no-deps --no-build-isolation -e ./sgl-kernel; fi
    install_packages --no-deps --no-build-isolation -e .
    echo "$device $want" >$STAMP
    say "done in $((SECONDS - started)) s; $VENV/bin/sglang-blendserve --help"
}

main "$@"
