"""Imports only point down: the rooms of the house and their floors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "featurecache"
FLOORS = {
    "errors": 0,
    "stopping": 0,
    "files": 1,
    "ignored": 1,
    "plugins": 1,
    "hashing": 1,
    "atomic": 1,
    "specs": 1,
    "records": 1,
    "versions": 1,
    "machine": 1,
    "tables": 1,
    "text": 1,
    "view_specs": 1,
    "image_specs": 1,
    "resizing": 1,
    "sources": 2,
    "store": 2,
    "backbones": 2,
    "heads": 2,
    "extraction": 3,
    "evaluation": 3,
    "reporting": 3,
    "finetuning": 4,
    "deployment": 5,
    "run": 6,
    "cli": 7,
    "__init__": 8,
    "__main__": 8,
}
FORBIDDEN = {("evaluation", "backbones"), ("reporting", "backbones")}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("featurecache."):
            found.append((node.lineno, (node.module or "").split(".")[1]))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, n.name.split(".")[1]) for n in node.names if n.name.startswith("featurecache.")]
    return found


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in MODULES} == set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_point_down(path: Path) -> None:
    room = room_of(path)
    for line, target in imported(path):
        if target == room:
            continue
        same_floor_file = FLOORS[room] == FLOORS[target] == 1  # the plain files of floor 1 build on each other
        assert FLOORS[target] < FLOORS[room] or same_floor_file, f"{path}:{line}: {room} must not import {target}"
        assert (room, target) not in FORBIDDEN, f"{path}:{line}: {room} must not import {target}"


def test_heads_are_listed_and_used_without_torch() -> None:
    """It is loaded by heads that are fitted on it, and by nobody else."""
    code = (
        "import sys; import featurecache.heads.registry, featurecache.evaluation.training; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("room", ["store", "sources", "evaluation", "reporting"])
def test_room_knows_no_torch(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in {"torch", "torchvision", "timm"}], f"{path}:{node}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_print_outside_the_command_line(path: Path) -> None:
    if room_of(path) == "cli":
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
