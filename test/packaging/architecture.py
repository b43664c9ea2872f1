"""The rooms of the package, and the rule that imports point down only.

    python test/packaging/architecture.py          rooms, arrows and circles; exit status 1 if any
                                                   arrow climbs or any circle exists
    python test/packaging/architecture.py --all    also every arrow, module by module

Imports inside functions and under ``TYPE_CHECKING`` count as well: a module that is handed a whole
object of a room above it belongs to that room.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "sglang.srt.blendserve"
FOLDER = Path(__file__).parents[2] / "python" / "sglang" / "srt" / "blendserve"

ROOMS = (
    ("cli", "plugin"),
    ("server", "run", "plan_command", "convert_command", "client", "fetch_model", "simulator"),
    ("report", "engines"),
    ("dispatch",),
    ("requests",),
    ("answering", "runtime", "guard", "tables"),
    ("store", "batch_file", "policy"),
    ("pool",),
    ("lengths",),
    ("plan",),
    ("cost",),
    ("settings",),
    ("flag_fields", "allowed_hosts", "job_ids", "latencies", "compiled", "hook_check"),
    ("releases",),
    ("refusals",),
)
"""Layers from the top down. A module may import from its own room and from the layers below it;
rooms of one layer do not know each other."""

LAYER = {room: layer for layer, rooms in enumerate(ROOMS) for room in rooms}

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the package by its name inside it ("" is the package itself)."""
    found = {}
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


def room_of(module: str) -> str:
    """The room of a module: its folder, or itself where it lies in none."""
    return module.partition(".")[0]


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The package's own modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for base, name in names:
            if base != PACKAGE and not base.startswith(PACKAGE + "."):
                continue
            inner = base.removeprefix(PACKAGE).removeprefix(".")
            longer = f"{inner}.{name}" if inner else name
            yield longer if longer in known else inner


def graph() -> Graph:
    """Module to the modules that it imports."""
    known = modules()
    return {
        name: {target for target in imports(path, known) if target not in ("", name)}
        for name, path in known.items()
        if name
    }


def climbing(arrows: Graph) -> list[tuple[str, str]]:
    """The arrows that do not point down."""
    wrong = []
    for source, targets in sorted(arrows.items()):
        for target in sorted(targets):
            here, there = room_of(source), room_of(target)
            if here != there and LAYER[here] >= LAYER[there]:
                wrong.append((source, target))
    return wrong


def circles(arrows: Graph) -> list[list[str]]:
    """Strongly connected sets of more than one node (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(arrows.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def between_rooms(arrows: Graph) -> Graph:
    """Room to the rooms that it imports from."""
    rooms: Graph = defaultdict(set)
    for source, targets in arrows.items():
        here = room_of(source)
        rooms[here] |= {room_of(target) for target in targets} - {here}
    return rooms


def main() -> int:
    """Print the picture; return 1 if a rule is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="print every arrow between modules")
    args = parser.parse_args()
    arrows = graph()
    rooms = between_rooms(arrows)
    unknown = sorted({room_of(name) for name in arrows} - set(LAYER))
    if unknown:
        print(f"rooms that stand in no layer: {', '.join(unknown)}")
        return 1
    for layer in ROOMS:
        for room in layer:
            size = [path for name, path in modules().items() if name and room_of(name) == room]
            lines = sum(len(path.read_text("utf-8").splitlines()) for path in size)
            below = ", ".join(sorted(rooms.get(room, ()), key=lambda name: (LAYER[name], name)))
            print(f"{room:<14}{len(size):>4} files {lines:>6} lines  -> {below or '-'}")
    if args.all:
        for source, targets in sorted(arrows.items()):
            print(f"{source} -> {', '.join(sorted(targets))}")
    wrong, round_trips = climbing(arrows), circles(arrows)
    print(f"\narrows that climb: {len(wrong)}")
    for source, target in wrong:
        print(f"  {source} -> {target}")
    print(f"circles: {len(round_trips)}")
    for members in round_trips:
        print(f"  {' <-> '.join(members)}")
    return int(bool(wrong or round_trips))


if __name__ == "__main__":
    sys.exit(main())
