"""Run other people's clients of OpenAI's batch API against a live server, and make a table.

    python benchmark/clients/run.py [--clients NAME ...] [--json FILE] [FLAG ...]

Each client is installed, as pinned in ``locks/``, into an environment of its own in a temporary
folder. One server is started, with SmolLM2-135M-Instruct unless ``--model-path`` names another.
Each client is then given its address, a key and a model, and goes through its cycle, which is the
script beside this one. FLAGs that this command does not know go to SGLang.

Needs the package registries of Python and npm, and minutes. To pin a newer version of litellm:

    echo litellm==X.Y.Z >in && uv pip compile --universal --python-version 3.11 --no-header \\
        --no-annotate -o benchmark/clients/locks/litellm_batches.txt in
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from live_server import ServerProcess, live_server

HERE = Path(__file__).resolve().parent

SECONDS = 420.0
"""Time limit of one client, in seconds; its own waiting ends before."""

MODEL = "smollm2"
"""The name under which the model is served."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client."""

    package: str
    """What the table calls it."""
    script: str

    @property
    def name(self) -> str:
        """What its lock and its folder are called, and what ``--clients`` takes."""
        return Path(self.script).stem


CLIENTS = (
    Client("openai (Python)", "openai_python.py"),
    Client("openai (Python), responses", "openai_responses.py"),
    Client("openai (Node)", "openai_node.mjs"),
    Client("litellm", "litellm_batches.py"),
    Client("bespokelabs-curator", "curator_llm.py"),
    Client("instructor", "instructor_batches.py"),
    Client("langbatch", "langbatch_batches.py"),
    Client("inspect-ai", "inspect_eval.py"),
    Client("autobatcher", "autobatcher_chat.py"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one client."""

    client: str
    version: str
    steps: list[str]
    answers: int
    errors: int
    failure: str
    note: str


class CannotInstallError(Exception):
    """A client is not to be had on this machine; the message says why."""


def install(client: Client, folder: Path) -> list[str]:
    """Install a client into a folder and return the command that runs its script.

    Raises:
        CannotInstallError: with the last words of the installer.
    """
    lock = HERE / "locks" / client.name
    if client.script.endswith(".mjs"):
        npm = shutil.which("npm")
        if npm is None:
            raise CannotInstallError("npm is not installed")
        shutil.copytree(lock, folder, dirs_exist_ok=True)
        _call([npm, "ci", "--no-audit", "--no-fund", "--prefix", str(folder)])
        # Modules are looked for beside the script. The lock brings its own Node.
        script = shutil.copy(HERE / client.script, folder)
        return [str(folder / "node_modules" / ".bin" / "node"), str(script)]
    python = folder / "bin" / "python"
    _call([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    requirements = ["--no-deps", "-r", f"{lock}.txt"]
    if importlib.util.find_spec("uv"):
        _call(
            [
                sys.executable,
                "-m",
                "uv",
                "pip",
                "install",
                "-q",
                "--python",
                str(python),
                *requirements,
            ]
        )
    else:
        _call(
            [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *requirements]
        )
    return [str(python), str(HERE / client.script)]


def _call(command: list[str]) -> None:
    """Run an installer; CannotInstallError with the end of its output when it fails."""
    # uv does not look at the system's certificates otherwise.
    environment = {"UV_SYSTEM_CERTS": "true"} | os.environ
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise CannotInstallError(words[-1][:300])


def environment(server: ServerProcess, home: Path) -> dict[str, str]:
    """Return a client's environment: where the server is, and nothing that it should send away."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "TMPDIR": str(home),
        "OPENAI_BASE_URL": f"{server.url}/v1",
        "OPENAI_API_KEY": server.api_key or "none",
        "BATCH_MODEL": MODEL,
        "TELEMETRY_ENABLED": "0",  # curator
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


def run_client(client: Client, command: list[str], variables: dict[str, str]) -> Row:
    """Run a client's script and return its report; never raises."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
        cwd=variables["HOME"],
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return _row(client, {"failure": f"no end after {SECONDS:.0f} s"}, output)
    try:
        report = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        report = {"failure": f"no report; exit status {process.returncode}"}
    return _row(client, report, output)


def _row(client: Client, report: dict[str, Any], output: str = "") -> Row:
    failure = report.get("failure", "")
    if failure and output:
        print(output[-3000:], file=sys.stderr)
    return Row(
        client=client.package,
        version=report.get("version", ""),
        steps=report.get("steps", []),
        answers=report.get("answers", 0),
        errors=report.get("errors", 0),
        failure=failure,
        note=report.get("note", ""),
    )


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| client | version | what it did | lines: answers, errors | result | note |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        result = "ok" if not row.failure else "fails: " + " ".join(row.failure.split())[:200]
        cells = [row.client, row.version, ", ".join(row.steps), f"{row.answers}, {row.errors}"]
        lines.append("| " + " | ".join([*cells, result.replace("|", "\\|"), row.note]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the clients; returns 1 when one of them fails."""
    from sglang.srt.blendserve.fetch_model.command import fetch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [client.name for client in CLIENTS]
    parser.add_argument("--clients", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--model-path", type=Path, help="default SmolLM2-135M-Instruct")
    parser.add_argument("--json", type=Path, help="write the result here")
    args, flags = parser.parse_known_args()
    chosen = [client for client in CLIENTS if client.name in args.clients]
    model = args.model_path or fetch("smollm2")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        commands: dict[str, list[str]] = {}
        failures: dict[str, str] = {}
        for client in chosen:
            print(f"installing {client.name}", file=sys.stderr, flush=True)
            try:
                commands[client.name] = install(client, root / client.name)
            except CannotInstallError as error:
                failures[client.name] = f"cannot be installed here: {error}"
        with live_server(root, model, ["--served-model-name", MODEL, *flags]) as server:
            for client in chosen:
                print(f"running {client.name}", file=sys.stderr, flush=True)
                if client.name in failures:
                    rows.append(_row(client, {"failure": failures[client.name]}))
                    continue
                home = root / f"{client.name}-home"
                home.mkdir()
                command = commands[client.name]
                rows.append(run_client(client, command, environment(server, home)))
    print(table(rows))
    if args.json:
        result = {
            "sglang": version("sglang"),
            "model": model.name,
            "clients": [asdict(r) for r in rows],
        }
        args.json.write_text(json.dumps(result, indent=1, ensure_ascii=True) + "\n")
    return int(any(row.failure for row in rows))


if __name__ == "__main__":
    sys.exit(main())
