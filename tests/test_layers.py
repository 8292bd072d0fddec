"""Imports only point down: the rooms of the house and their floors."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

PACKAGE = Path(__file__).resolve().parent.parent / "featurecache"
FLOORS = {
    "errors": 0,
    "stopping": 0,
    "files": 1,
    "ignored": 1,
    "plugins": 1,
    "code_notice": 1,
    "progress": 1,
    "wording": 1,
    "hashing": 1,
    "atomic": 1,
    "specs": 1,
    "records": 1,
    "versions": 1,
    "machine": 1,
    "json_tables": 1,
    "table_dialects": 1,
    "table_files": 1,
    "devices": 1,
    "spill": 1,
    "tables": 1,
    "table_output": 1,
    "display": 1,
    "text": 1,
    "view_specs": 1,
    "guide": 1,
    "image_specs": 1,
    "resizing": 1,
    "sources": 2,
    "store": 2,
    "backbones": 2,
    "heads": 2,
    "extraction": 3,
    "evaluation": 3,
    "interop": 3,
    "advice": 5,
    "reporting": 5,
    "finetuning": 4,
    "deployment": 5,
    "train": 5,
    "run_report": 6,
    "run": 7,
    "verification": 6,
    "explorer": 6,
    "cli": 8,
    "testing": 8,
    "__init__": 9,
    "__main__": 9,
}
FORBIDDEN = {("evaluation", "backbones"), ("reporting", "backbones")}
LATE = {("store", "interop")}
"""Calls upward that methods make, so that what is there can be taken out from where it is."""
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("featurecache."):
            found.append((node.lineno, (node.module or "").split(".")[1]))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, n.name.split(".")[1]) for n in node.names if n.name.startswith("featurecache.")]
    return found


def late_lines(path: Path) -> set[int]:
    """Lines of imports inside functions."""
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)]
    return {node.lineno for f in functions for node in ast.walk(f) if isinstance(node, ast.ImportFrom)}


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in MODULES} == set(FLOORS)


def test_imports_only_point_down() -> None:
    wrong = []
    for path in MODULES:
        room = room_of(path)
        for line, target in imported(path):
            if target == room:
                continue
            same_floor_file = FLOORS[room] == FLOORS[target] == 1  # the plain files of floor 1 build on each other
            if (room, target) in LATE and line in late_lines(path):
                continue
            if not (FLOORS[target] < FLOORS[room] or same_floor_file) or (room, target) in FORBIDDEN:
                wrong.append(f"{path}:{line}: {room} must not import {target}")
    assert wrong == []


@pytest.mark.full
def test_heads_are_listed_and_used_without_torch() -> None:
    """It is loaded by heads that are fitted on it, and by nobody else."""
    code = (
        "import sys; import featurecache.heads.registry, featurecache.evaluation.training; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.full
def test_predictions_import_nothing_of_how_heads_are_evaluated() -> None:
    """A few images are predicted in hardly more time than the libraries take to import."""
    code = (
        "import sys, featurecache.deployment.predict; "
        "sys.exit(any(name.startswith('featurecache.evaluation') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.full
def test_tests_of_the_store_are_collected_without_torch() -> None:
    """They are run after every change: what they do not need must not cost seconds."""
    code = "import sys, pytest; pytest.main(['--collect-only', '-qq', 'tests/store']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("room", ["store", "sources", "evaluation", "reporting"])
def test_room_knows_no_torch(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(tree_of(path)):
            names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in {"torch", "torchvision", "timm"}], f"{path}:{node}"


def test_no_print_outside_the_command_line() -> None:
    for path in MODULES:
        calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        printed = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert room_of(path) == "cli" or not printed, f"{path}:{printed[0].lineno}"
