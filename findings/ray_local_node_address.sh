#!/usr/bin/env bash
# Ray does not take the loopback for a node's address, and says nothing.
#
# Guess beforehand: `ray.init(_node_ip_address="127.0.0.1")` makes a cluster that listens on
# 127.0.0.1.
#
# Seen (ray 2.60.0, Linux): Ray replaces a loopback address by the machine's own, and its store, its
# node's server and its workers listen on all addresses, as without the argument. With the variable
# RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, on Linux, all of them listen on 127.0.0.1.
#
# What follows: set that variable before ray is imported where a cluster is for this machine alone.
#
# Exits with 0 if it is still so, 1 if it has changed. Takes half a minute; needs Python 3.11 or newer
# and a machine with an address besides the loopback.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0 psutil==7.2.1
cat > "$folder/listens.py" <<'PY'
import psutil
import ray

ray.init(_node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=1, logging_level="error")
found = set()
for process in psutil.Process().children(recursive=True):
    try:
        if any(name in process.name() for name in ("gcs_server", "raylet")):
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found.add(one.laddr.ip.removeprefix("::ffff:"))
    except psutil.Error:
        continue
print(" ".join(sorted(found)))
PY
export RAY_TMPDIR="$folder"
asked=$("$folder/venv/bin/python" "$folder/listens.py" 2>/dev/null | tail -1)
variable=$(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 "$folder/venv/bin/python" "$folder/listens.py" 2>/dev/null | tail -1)
echo "with _node_ip_address=127.0.0.1: $asked"
echo "with the variable as well:       $variable"
[ "$asked" = "::" ] && [ "$variable" = "127.0.0.1" ]
