#!/usr/bin/env bash
# Make .venv with everything this repository needs: SGLang, its CPU kernels or its GPU packages,
# the tools for tests and plots, and this package in editable form. Safe to run again and again:
# it works only when a lock file, pyproject.toml or sgl-kernel/ changed since the last run.
#
# Environment:
#   SGLANG             the release of SGLang: 0.5.23 (default, in .venv) or 0.5.17 (in .venv-0.5.17)
#   PYTHON             the Python to use (default: the first of python3.11, 3.12, 3.13, python3 that fits)
#   BLENDSERVE_DEVICE  cpu or cuda (default: cuda when nvidia-smi lists a GPU)
#   DEBUG=1            show every command
set -Eeuo pipefail
[ -z "${DEBUG:-}" ] || set -x
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEFAULT=0.5.23
SGLANG=${SGLANG:-$DEFAULT}
VENV=.venv
[ "$SGLANG" = $DEFAULT ] || VENV=.venv-$SGLANG
STAMP=$VENV/.installed
LOCK=requirements/cpu-$SGLANG.txt

say() { printf 'install: %s\n' "$*"; }
# In red where a person reads it.
warn() {
    local line
    for line in "$@"; do
        if [ -t 2 ]; then printf '\033[31minstall: %s\033[0m\n' "$line" >&2; else say "$line" >&2; fi
    done
}
die() {
    printf 'install: %s\n' "$@" >&2
    exit 3
}
trap '[ $? = 3 ] || echo "install: failed at line $LINENO; DEBUG=1 make install shows every command" >&2' ERR

releases() { (cd requirements && echo cpu-*.txt | sed 's/cpu-//g; s/\.txt//g'); }

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
        cat "$LOCK" requirements/dev.txt requirements/uv.txt pyproject.toml scripts/install.sh
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

# Not in editable form: each release brings a torch of its own, and a built module fits just that.
# By pip, because uv keeps what it built and does not see that a C++ source changed.
install_kernels() {
    rm -rf sgl-kernel/build sgl-kernel/python/sgl_kernel/_native.*
    $VENV/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
        --no-build-isolation --force-reinstall ./sgl-kernel ||
        die "pip could not install ./sgl-kernel (its words above)"
    rm -rf sgl-kernel/build
    # pip hides what a build prints that ends well, and this one does even without a compiler.
    local reason
    reason=$($VENV/bin/python -c 'from sgl_kernel import native; print(native.load()[1])')
    [ -z "$reason" ] || warn "the CPU kernels are not there: $reason" \
        "everything works, attention several times slower; what the build said:" \
        "$VENV/bin/python -m pip install -v --no-deps --no-build-isolation --force-reinstall ./sgl-kernel"
}

main() {
    [ "$(uname -s)" = Linux ] || die "SGLang runs on Linux; this is $(uname -s)"
    local device set want python started=$SECONDS gigabytes=7
    [ -f "$LOCK" ] || die "SGLANG is '$SGLANG'; it must be one of: $(releases)"
    device=$(device)
    set="$device-$SGLANG"
    want=$(fingerprint "$set")
    if [ "$(cat $STAMP 2>/dev/null || true)" = "$set $want" ]; then
        say "$VENV is up to date (SGLang $SGLANG, $device)"
        return
    fi
    exec 9<pyproject.toml && flock 9 # one installation at a time

    [ "$device" = cpu ] || gigabytes=11
    if [ "$device" = cpu ] && [ "$(uname -m)" != x86_64 ]; then
        die "$LOCK is for x86-64; this is $(uname -m)"
    fi
    local before
    before=$(cut -d' ' -f1 $STAMP 2>/dev/null || echo "$set")
    if [ "$before" != "$set" ]; then
        say "$VENV was made for $before; making it anew for $set"
        rm -rf $VENV
    fi
    rm -f $STAMP
    python=$(find_python)
    compgen -G "$VENV/lib/python*/site-packages/torch" >/dev/null || check_disk "$PWD" "$gigabytes" "$VENV"
    make_venv "$python"
    get_uv "$gigabytes"

    if [ "$device" = cuda ]; then
        say "GPU found: installing sglang==$SGLANG with all its dependencies (9 GB unpacked, about 2 minutes)"
        install_packages "sglang==$SGLANG" "setuptools>=77,<82"
    else
        say "no NVIDIA GPU: installing sglang==$SGLANG for the CPU from $LOCK"
        say "(2.9 GB to download the first time, 5.4 GB unpacked: 1 minute at 100 MB/s; seconds from uv's cache)"
        command -v c++ >/dev/null || warn "no C++ compiler: sgl-kernel will use torch alone, slower (apt-get install g++)"
        install_packages --no-deps -r "$LOCK"
    fi
    say "installing the tools for tests and plots, and this package"
    install_packages --no-deps -r requirements/dev.txt
    [ "$device" != cpu ] || install_kernels
    install_packages --no-deps --no-build-isolation -e .
    echo "$set $want" >$STAMP
    say "done in $((SECONDS - started)) s; $VENV/bin/sglang-blendserve --help"
}

main "$@"
