"""Figures of the package's structure, and of the code that one request runs through.

    structure.py static [--root CHECKOUT] [--json OUT]    reads the source, runs nothing
    structure.py static --files policy/*.py               and adds up these files of the package
    structure.py way    [--root CHECKOUT] [--json OUT]    answers one line, by `run` and by a server
    structure.py all    [--root CHECKOUT] [--json OUT]    both

``docs/development.md`` ("Structure, measured") is made of it, before and after a redesign; the
figures of version 0.1.0 are in ``benchmark/results/structure-0.1.0.json``. ``static`` takes a
second, ``way`` some minutes on a CPU.

``--root`` may be any checkout, of an older version too: nothing here knows a folder of the package,
and what is started are its public commands. ``way`` needs the checkout's ``.venv`` with coverage.py
in it (``.venv/bin/python -m pip install coverage``) and takes two engine starts.

What is counted:

code lines      not blank, not only a comment, not part of a docstring
imports         at the top of a module or in a class body: "top"; in a function: "function"; under
                ``if TYPE_CHECKING``: "typing". Circles are strongly connected components with two
                modules or more, over top, over top + function, and over all three
ownership       pairs of modules that import each other, at least one way under TYPE_CHECKING only
one importer    modules that exactly one other module of the package imports, in any of the three
                ways; not ``__init__``, commands (a module that has ``__main__``, or that
                pyproject.toml or a string in the package names) and modules without an importer
constants       upper case names that a module sets to a number, to arithmetic on numbers, or to a
                tuple of those; and the fields of a dataclass ``Tuning`` that have a number or
                a truth value as default
names           of modules and folders, of classes, of top-level functions without an underscore. A
                name is used twice where two places define it, be they of one kind or of two;
                a definition with the name of its own module is one place with it
way             a statement counts as run when its first line in the body of a function did, in any
                process. Compiled functions are run as Python (NUMBA_DISABLE_JIT). Files of which
                nothing but the module level ran are not counted
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tokenize
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

PACKAGE = "sglang.srt.blendserve"
SOURCE = "python"

Figures = dict[str, Any]
Graph = dict[str, set[str]]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
TUNING = "Tuning"
"""The dataclass whose fields are hand-set constants."""
IMPORT_KINDS = ("top", "function", "typing")


# --- the package as it is written


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        name: dotted, below the package; "" is the package itself.
        file: relative to the package.
    """

    name: str
    file: str
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Whether this is an ``__init__.py``."""
        return self.file.endswith("__init__.py")

    @property
    def folder(self) -> str:
        """The folder directly below the package, "." for files beside it."""
        return top_folder(self.file)


def top_folder(file: str) -> str:
    """Return the first folder of a path relative to the package."""
    return file.split("/")[0] if "/" in file else "."


def read_modules(root: Path) -> dict[str, Module]:
    """Return the package's modules by name."""
    base = package_folder(root)
    modules = {}
    for path in sorted(base.rglob("*.py")):
        file = path.relative_to(base).as_posix()
        parts = file.removesuffix(".py").split("/")
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, file, text, ast.parse(text, file))
    return modules


def package_folder(root: Path) -> Path:
    """Return the package's folder in a checkout."""
    return root.joinpath(SOURCE, *PACKAGE.split("."))


def count_code_lines(module: Module) -> int:
    """Return how many lines hold code."""
    empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER}
    empty |= {tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in empty:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


# --- who imports whom


def find_imports(module: Module, modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Return the modules of the package that this one imports, by kind of import."""
    found: dict[str, set[str]] = {kind: set() for kind in IMPORT_KINDS}

    def visit(node: ast.AST, kind: str) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found[kind].update(_targets(node, module, modules))
        elif isinstance(node, ast.If) and _is_type_checking(node.test):
            for statement in node.body:
                visit(statement, "typing")
            for statement in node.orelse:
                visit(statement, kind)
        else:
            if isinstance(node, FUNCTIONS) and kind == "top":
                kind = "function"
            for child in ast.iter_child_nodes(node):
                visit(child, kind)

    visit(module.tree, "top")
    for targets in found.values():
        targets.discard(module.name)
    return found


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))


def _targets(
    node: ast.Import | ast.ImportFrom, module: Module, modules: Mapping[str, Module]
) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [_below_package(alias.name) for alias in node.names]
        yield from (name for name in names if name is not None and name in modules)
        return
    base: str | None
    if node.level:
        parts = module.name.split(".") if module.name else []
        up = node.level - 1 if module.is_package else node.level
        parts = parts[: len(parts) - up]
        base = ".".join([*parts, *(node.module.split(".") if node.module else [])])
    else:
        base = _below_package(node.module or "")
    if base is None or base not in modules:
        return
    for alias in node.names:
        inner = f"{base}.{alias.name}".lstrip(".")
        yield inner if inner in modules else base


def _below_package(dotted: str) -> str | None:
    if dotted == PACKAGE:
        return ""
    return dotted.removeprefix(PACKAGE + ".") if dotted.startswith(PACKAGE + ".") else None


def find_circles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components with two members or more (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def connect(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in order:
                connect(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            start = stack.index(node)
            if len(stack) - start > 1:
                circles.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(graph):
        if node not in order:
            connect(node)
    return sorted(circles)


def measure_imports(root: Path, modules: Mapping[str, Module]) -> Figures:
    """Return circles, ownership circles and modules with one importer."""
    imports = {name: find_imports(module, modules) for name, module in modules.items()}
    graph: Graph = {name: set() for name in modules}
    figures: Figures = {"circles": {}, "folder_circles": {}}
    for kind, label in zip(IMPORT_KINDS, ("top", "top+function", "all"), strict=True):
        for name, targets in imports.items():
            graph[name] |= targets[kind]
        figures["circles"][label] = find_circles(graph)
        figures["folder_circles"][label] = find_circles(_folders(graph, modules))

    figures["ownership"] = sorted(
        [first, second]
        for first, targets in graph.items()
        for second in targets
        if first < second and first in graph[second]
        if _only_typing(imports[first], second) or _only_typing(imports[second], first)
    )
    importers: dict[str, set[str]] = defaultdict(set)
    for name, imported in graph.items():
        for target in imported:
            importers[target].add(name)
    entries = find_entries(root, modules)
    figures["entries"] = sorted(entries)
    figures["one_importer"] = {
        name: next(iter(importers[name]))
        for name, module in sorted(modules.items())
        if len(importers[name]) == 1 and not module.is_package and name not in entries
    }
    figures["no_importer"] = sorted(
        name
        for name, module in modules.items()
        if not importers[name] and not module.is_package and name not in entries
    )
    return figures


def _only_typing(targets: Mapping[str, set[str]], name: str) -> bool:
    return name not in targets["top"] | targets["function"]


def _folders(graph: Graph, modules: Mapping[str, Module]) -> Graph:
    """Return the graph of top folders; files beside them stand for themselves."""

    def node(name: str) -> str:
        module = modules[name]
        return name if module.folder == "." else module.folder + "/"

    found: Graph = defaultdict(set)
    for name, targets in graph.items():
        found[node(name)] |= {node(target) for target in targets} - {node(name)}
    return dict(found)


def find_entries(root: Path, modules: Mapping[str, Module]) -> set[str]:
    """Return the modules that something else than an import starts."""
    entries = set()
    for name in re.findall(rf"{re.escape(PACKAGE)}\.([\w.]+)", _project_text(root)):
        entries.add(name)
    for name, module in modules.items():
        if re.search(r"^if __name__ == ", module.text, re.MULTILINE):
            entries.add(name)
        for node in ast.walk(module.tree):
            # A command is named by its module: whole, or below the package with a dot in it.
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = _below_package(node.value) or node.value
                if "." in named:
                    entries.add(named)
    return entries & set(modules)


def _project_text(root: Path) -> str:
    """Return what names modules to start: the project file, and the module that it starts."""
    paths = [root / "pyproject.toml", *(root / SOURCE).glob("boot/*/*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.exists())


# --- functions, constants, names


def list_functions(module: Module) -> Iterator[tuple[str, int]]:
    """Yield the qualified name and the lines of each function, from its ``def`` to its end."""

    def visit(node: ast.AST, path: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
                inner = f"{path}.{child.name}".lstrip(".")
            if isinstance(child, FUNCTIONS):
                yield inner, (child.end_lineno or child.lineno) - child.lineno + 1
            yield from visit(child, inner)

    yield from visit(module.tree, "")


def list_constants(module: Module) -> Iterator[str]:
    """Yield the names that the module sets to numbers by hand."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            pairs = [(node.target, node.value)]
        else:
            continue
        for target, value in pairs:
            match target, value:
                case ast.Tuple(elts=targets), ast.Tuple(elts=values):
                    named = list(zip(targets, values, strict=False))
                case _:
                    named = [(target, value)]
            for name, number in named:
                constant = isinstance(name, ast.Name) and _CONSTANT.fullmatch(name.id)
                if constant and _is_numeric(number):
                    yield ast.unparse(name)
    for cls in module.tree.body:
        if isinstance(cls, ast.ClassDef) and cls.name == TUNING:
            yield from _numeric_fields(cls)


def _numeric_fields(cls: ast.ClassDef) -> Iterator[str]:
    for field in cls.body:
        if isinstance(field, ast.AnnAssign) and field.value is not None:
            truth = isinstance(field.value, ast.Constant) and isinstance(field.value.value, bool)
            if truth or _is_numeric(field.value):
                yield f"{cls.name}.{ast.unparse(field.target)}"


def _is_numeric(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.UnaryOp(operand=operand):
            return _is_numeric(operand)
        case ast.BinOp(left=left, right=right):
            return _is_numeric(left) and _is_numeric(right)
        case ast.Tuple(elts=elements):
            return bool(elements) and all(map(_is_numeric, elements))
    return False


def find_reused_names(modules: Mapping[str, Module]) -> dict[str, list[str]]:
    """Return the names that two places define, with these places."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for name, module in modules.items():
        if name:
            kind = "folder" if module.is_package else "module"
            places[name.rpartition(".")[2]][module.file] = kind
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].setdefault(module.file, "class")
        for statement in module.tree.body:
            if isinstance(statement, FUNCTIONS) and not statement.name.startswith("_"):
                places[statement.name].setdefault(module.file, "function")
    return {
        name: [f"{kind} {file}" for file, kind in sorted(found.items())]
        for name, found in sorted(places.items())
        if len(found) > 1
    }


def count_files(modules: Mapping[str, Module], patterns: Iterable[str]) -> dict[str, Figures]:
    """Return lines, code lines and constants of the files that match a pattern, by file.

    Raises:
        ValueError: a pattern matches no file; they are relative to the package.
    """
    found = {}
    for pattern in patterns:
        matches = [module for module in modules.values() if fnmatch(module.file, pattern)]
        if not matches:
            raise ValueError(f"no file of the package matches {pattern}")
        for module in matches:
            found[module.file] = {
                "lines": len(module.text.splitlines()),
                "code_lines": count_code_lines(module),
                "constants": len(list(list_constants(module))),
            }
    return found


def measure_static(root: Path, patterns: Iterable[str] = ()) -> Figures:
    """Return all that the source tells; the files that match ``patterns`` one by one, too."""
    modules = read_modules(root)
    folders: dict[str, Counter[str]] = defaultdict(Counter)
    functions: list[tuple[int, str, str]] = []
    constants: dict[str, list[str]] = {}
    for module in modules.values():
        names = list(list_constants(module))
        if names:
            constants[module.file] = names
        functions += [(lines, module.file, name) for name, lines in list_functions(module)]
        lines = len(module.text.splitlines())
        folders[module.folder].update(
            files=1, lines=lines, code_lines=count_code_lines(module), constants=len(names)
        )
    total: Counter[str] = Counter()
    for counts in folders.values():
        total.update(counts)
    functions.sort(key=lambda one: (-one[0], *one[1:]))
    return {
        "total": dict(total),
        "folders": {name: dict(counts) for name, counts in sorted(folders.items())},
        "functions": len(functions),
        "longest_functions": [
            {"lines": lines, "file": file, "name": name} for lines, file, name in functions[:10]
        ],
        "constants": constants,
        "reused_names": find_reused_names(modules),
        "files": count_files(modules, patterns),
        **measure_imports(root, modules),
    }


# --- the way of one line

TRACER = '''
"""Note which lines of one folder run, in every process that Python starts.

The lines are written down again and again and not only at the end, because SGLang ends its
processes by SIGKILL; a file is replaced as a whole, so a kill leaves the one before.
"""
import atexit, json, os, threading

import coverage

folder, into = os.environ["WAY_FOLDER"], os.environ["WAY_INTO"]
tracer = coverage.Coverage(data_file=None, include=[folder + "/*"], config_file=False)
tracer.set_option("run:disable_warnings", ["no-data-collected"])
tracer.start()
target = os.path.join(into, f"{os.getpid()}-{os.urandom(4).hex()}.json")
ending = threading.Event()


def dump():
    data = tracer.get_data()
    lines = {file: sorted(data.lines(file) or ()) for file in data.measured_files()}
    with open(target + ".part", "w") as stream:
        json.dump(lines, stream)
    os.replace(target + ".part", target)


def keep_dumping():
    while not ending.wait(0.2):
        try:
            dump()
        except RuntimeError:  # a dictionary grew meanwhile; the next try is soon
            pass
    dump()


thread = threading.Thread(target=keep_dumping, name="way", daemon=True)
thread.start()


@atexit.register
def end():
    if os.path.isdir(into):
        ending.set()
        thread.join(20)
'''

SETTLE_SECONDS = 2.0
"""Ten times as long as a traced process takes to write down what it ran."""
START_SECONDS = 600
TERMINAL = ("completed", "failed", "expired", "cancelled")

CPU_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "SGLANG_NCCL_SO_PATH": "none",
    "OMP_NUM_THREADS": "1",
}
CPU_FLAGS = [
    *("--device", "cpu", "--sampling-backend", "pytorch", "--grammar-backend", "none"),
    *("--disable-cuda-graph", "--sleep-on-idle"),
]

LINE = {
    "custom_id": "one",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "messages": [{"role": "user", "content": "Name a colour."}],
        "max_tokens": 16,
        "temperature": 0,
    },
}


@dataclass(frozen=True)
class Way:
    """What every measured process is started with.

    Attributes:
        work: a temporary folder.
    """

    root: Path
    python: Path
    model: str
    work: Path

    @property
    def traces(self) -> Path:
        """The folder that processes write what they ran to."""
        return self.work / "traces"

    def environment(self) -> dict[str, str]:
        """Make the folders of the trace; return the environment of a traced process."""
        site = self.work / "site"
        for folder in (site, self.traces):
            folder.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(TRACER, encoding="utf-8")
        before = os.environ.get("PYTHONPATH")
        return (CPU_ENVIRONMENT if on_cpu() else {}) | {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(site), *([before] if before else [])]),
            "WAY_FOLDER": str(package_folder(self.root)),
            "WAY_INTO": str(self.traces),
            "NUMBA_DISABLE_JIT": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def lines(self) -> dict[str, set[int]]:
        """Return what ran, by file."""
        found: dict[str, set[int]] = defaultdict(set)
        for path in self.traces.glob("*.json"):
            for file, lines in json.loads(path.read_text()).items():
                relative = Path(file).relative_to(package_folder(self.root)).as_posix()
                found[relative].update(lines)
        return found


def on_cpu() -> bool:
    """Whether this machine has no NVIDIA GPU."""
    return shutil.which("nvidia-smi") is None


def way_of_run(way: Way) -> None:
    """Answer one line by ``sglang-blendserve run``."""
    (way.work / "in.jsonl").write_text(json.dumps(LINE) + "\n")
    command = [str(way.python.with_name("sglang-blendserve")), "run", "-i", "in.jsonl"]
    command += ["-o", "out.jsonl", "--model-path", way.model, "--max-total-tokens", "4000"]
    subprocess.run(command, cwd=way.work, env=way.environment(), check=True, stdout=sys.stderr)
    check_answer((way.work / "out.jsonl").read_text())


def way_of_server(way: Way) -> None:
    """Answer one line by the batch API: upload, create, poll until it is complete, fetch."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [str(way.python), "-m", "sglang.launch_server", "--model-path", way.model]
    command += ["--schedule-policy", "blendserve", "--batch-dir", str(way.work / "batches")]
    command += ["--port", str(port), "--max-total-tokens", "4000"]
    command += ["--log-level", "error", *(CPU_FLAGS if on_cpu() else [])]
    server = subprocess.Popen(
        command, cwd=way.work, env=way.environment(), stdout=sys.stderr, start_new_session=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(server, f"{url}/health")
        batch = submit(url)
        while batch["status"] not in TERMINAL:
            time.sleep(0.5)
            batch = json.loads(fetch(f"{url}/v1/batches/{batch['id']}"))
        check_answer(fetch(f"{url}/v1/files/{batch['output_file_id']}/content").decode())
        time.sleep(SETTLE_SECONDS)
        server.send_signal(signal.SIGTERM)
        server.wait(120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_until_up(server: subprocess.Popen[bytes], url: str) -> None:
    """Return when the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode}")
        try:
            fetch(url)
            return
        except OSError:  # urllib's errors are; 503 while the server warms up is one
            time.sleep(0.5)
    raise TimeoutError(f"no answer from {url}")


def submit(url: str) -> Figures:
    """Upload the line and create a batch of it; return the batch."""
    mark = "one-line-of-a-batch"
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n',
        json.dumps(LINE) + f"\n\r\n--{mark}--\r\n",
    ]
    kind = f"multipart/form-data; boundary={mark}"
    file = json.loads(fetch(f"{url}/v1/files", "".join(parts).encode(), kind))
    options = {
        "input_file_id": file["id"],
        "endpoint": LINE["url"],
        "completion_window": "24h",
    }
    batch = fetch(f"{url}/v1/batches", json.dumps(options).encode(), "application/json")
    return dict(json.loads(batch))


def fetch(url: str, data: bytes | None = None, kind: str = "") -> bytes:
    """Return what the server answers; with ``data`` the request is a POST."""
    request = urllib.request.Request(url, data, {"Content-Type": kind} if kind else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def check_answer(text: str) -> None:
    """Raise unless the text is one good result line."""
    [line] = text.splitlines()
    if json.loads(line)["response"]["status_code"] != 200:
        raise RuntimeError(f"the line was not answered: {line}")


def body_statements(tree: ast.AST) -> dict[int, int]:
    """Return, for each line in the body of a function, the first line of its statement."""
    found: dict[int, int] = {}

    def visit(node: ast.AST, inside: bool) -> None:
        # From outside to inside, so that the innermost statement has the last word.
        if isinstance(node, ast.stmt) and inside:
            decorators = getattr(node, "decorator_list", ())
            first = min([node.lineno, *(one.lineno for one in decorators)])
            for line in range(first, (node.end_lineno or node.lineno) + 1):
                found[line] = first
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, inside or (isinstance(node, FUNCTIONS) and field == "body"))

    visit(tree, False)
    return found


def summarize_way(modules: Mapping[str, Module], ran: Mapping[str, Iterable[int]]) -> Figures:
    """Return files and statements that ran inside functions, in all and by top folder."""
    folders: dict[str, Counter[str]] = defaultdict(Counter)
    files: dict[str, int] = {}
    imported = 0
    for module in modules.values():
        statements = body_statements(module.tree)
        lines = set(ran.get(module.file, ()))
        executed = {statements[line] for line in lines if line in statements}
        imported += bool(lines)
        if executed:
            files[module.file] = len(executed)
        folders[module.folder].update(
            files=bool(executed), lines=len(executed), all_lines=len(set(statements.values()))
        )
    return {
        "files_imported": imported,
        "files": len(files),
        "lines": sum(files.values()),
        "folders": {name: dict(counts) for name, counts in sorted(folders.items())},
        "lines_by_file": files,
    }


def measure_way(root: Path, python: Path, model: str | None) -> Figures:
    """Return what one line executes, by each of the two ways."""
    modules = read_modules(root)
    found: Figures = {}
    for name, go in (("run", way_of_run), ("server", way_of_server)):
        with tempfile.TemporaryDirectory(prefix="way-") as work:
            way = Way(root, python, model or fetch_model(python), Path(work))
            go(way)
            found[name] = summarize_way(modules, way.lines())
    return found


def fetch_model(python: Path) -> str:
    """Return the folder of the model that demo and tests use."""
    command = [str(python.with_name("sglang-blendserve")), "fetch-model", "smollm2"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split("\n")[0]


# --- what is printed


def print_table(head: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Print columns: the first to the left, the others to the right."""
    table = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
    print()


def print_static(found: Figures) -> None:
    """Print the figures of `measure_static`."""
    columns = ["files", "lines", "code_lines", "constants"]
    rows = [[name, *(counts[c] for c in columns)] for name, counts in found["folders"].items()]
    print_table(["folder", *columns], [*rows, ["all", *(found["total"][c] for c in columns)]])

    kinds = list(found["circles"])
    rows = [
        [f"{what}, {kind}", len(found[key][kind]), sum(map(len, found[key][kind]))]
        for what, key in (("import circles", "circles"), ("folder circles", "folder_circles"))
        for kind in kinds
    ]
    print_table(["", "circles", "members"], rows)
    rows = [
        ["ownership circles (pairs)", len(found["ownership"])],
        ["modules with one importer", len(found["one_importer"])],
        ["modules without an importer", len(found["no_importer"])],
        ["names used twice", len(found["reused_names"])],
        ["functions", found["functions"]],
        ["longest function (lines)", found["longest_functions"][0]["lines"]],
    ]
    print_table(["", "number"], rows)
    longest = found["longest_functions"]
    rows = [[f"{one['file']}: {one['name']}", one["lines"]] for one in longest]
    print_table(["longest functions", "lines"], rows)
    if found["files"]:
        columns = columns[1:]
        rows = [[name, *(counts[c] for c in columns)] for name, counts in found["files"].items()]
        sums = [sum(counts[c] for counts in found["files"].values()) for c in columns]
        print_table(["file", *columns], [*rows, ["all", *sums]])
    for kind in kinds:
        for circle in found["circles"][kind]:
            print(f"import circle, {kind}: {' '.join(circle)}")
        for circle in found["folder_circles"][kind]:
            print(f"folder circle, {kind}: {' '.join(circle)}")
    for pair in found["ownership"]:
        print(f"ownership circle: {' '.join(pair)}")
    for name, importer in found["one_importer"].items():
        print(f"one importer: {name} <- {importer or PACKAGE}")
    for name in found["no_importer"]:
        print(f"no importer: {name}")
    for name, places in found["reused_names"].items():
        print(f"used twice: {name}: {', '.join(places)}")
    for file, names in found["constants"].items():
        print(f"constants: {file}: {' '.join(names)}")
    print()


def print_way(found: Figures) -> None:
    """Print the figures of `measure_way`."""
    for name, figures in found.items():
        rows = [
            [folder, counts["files"], counts["lines"], counts["all_lines"]]
            for folder, counts in figures["folders"].items()
        ]
        all_lines = sum(counts["all_lines"] for counts in figures["folders"].values())
        rows.append(["all", figures["files"], figures["lines"], all_lines])
        print_table([f"one line by {name}", "files", "lines", "of lines"], rows)
        print(f"files imported at least: {figures['files_imported']}\n")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("static", "way", "all"), default="static")
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--root", type=Path, default=here, help="checkout (default: this one)")
    parser.add_argument(
        "--files",
        nargs="+",
        metavar="FILE",
        default=(),
        help="static: lines and constants of these files, too; patterns relative to the package",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there, too")
    parser.add_argument(
        "--python", type=Path, help="way: Python of the checkout (default: ROOT/.venv/bin/python)"
    )
    parser.add_argument("--model-path", help="way: model (default: fetch-model smollm2)")
    args = parser.parse_args()
    args.root = args.root.resolve()
    if not package_folder(args.root).is_dir():
        parser.error(f"{package_folder(args.root)} is not there; --root names a checkout")
    try:
        count_files(read_modules(args.root), args.files)
    except ValueError as error:
        parser.error(f"--files: {error}")
    return args


def main() -> None:
    """Measure, print, and write what was measured."""
    args = parse_arguments()
    found: Figures = {}
    if args.what != "way":
        found["static"] = measure_static(args.root, args.files)
        print_static(found["static"])
    if args.what != "static":
        python = args.python or args.root / ".venv" / "bin" / "python"
        found["way"] = measure_way(args.root, python.absolute(), args.model_path)
        print_way(found["way"])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
