"""A room imports only from the floors below it; this test walks every import and says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import riprap

SOURCE = Path(riprap.__file__).parent
FLOORS = [
    {"evidence", "tensors", "stacks", "schema", "distributed", "plain"},
    {"behaviors", "record"},
    {"probing"},
    {"signals", "detectors", "selection"},
    {"guards", "diagnosis"},
    {"monitor"},
    {"integrations", "report"},
    {"launch"},
    {"studies"},
    {"dashboard"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FACE = "riprap"  # the package's own __init__, which stands on top of all rooms


def imported(tree: ast.AST, package: list[str]) -> set[str]:
    """Full names of what a module of `package` imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = [*base, *((node.module or "").split(".") if node.module else [])]
            names.update(".".join([*origin, alias.name]) for alias in node.names)
    return names


def violations(root: Path) -> list[str]:
    """Imports under `root` that do not go down."""
    found = []
    for file in sorted(root.rglob("*.py")):
        parts = [FACE, *file.relative_to(root).with_suffix("").parts]
        package = parts[:-1]
        if parts == [FACE, "__init__"]:
            continue
        here = parts[1]
        if here not in FLOOR:
            found.append(f"{file.name}: room {here!r} has no floor")
            continue
        for name in sorted(imported(ast.parse(file.read_text(encoding="utf-8")), package)):
            target = name.split(".")
            if target[0] != FACE:
                continue
            there = target[1] if len(target) > 1 and target[1] in FLOOR else FACE
            ground = FLOOR[here] == 0 and FLOOR.get(there) == 0
            if there != here and not ground and FLOOR.get(there, len(FLOORS)) >= FLOOR[here]:
                found.append(f"{'.'.join(parts)} imports {name}")
    return found


def test_no_arrow_runs_up() -> None:
    assert violations(SOURCE) == []


def test_every_room_was_walked() -> None:
    walked = {
        file.relative_to(SOURCE).parts[0].removesuffix(".py") for file in SOURCE.rglob("*.py")
    }
    assert {"evidence", "behaviors", "probing", "signals", "detectors", "monitor"} <= walked


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tensors.py", "from riprap.behaviors import Behavior"),
        ("behaviors/kinds.py", "import riprap.monitor._hooks"),
        ("signals/base.py", "from riprap.detectors import Track"),
        ("signals/features/drift.py", "from ...monitor import Monitor"),
        ("record/store.py", "from riprap import Monitor"),
        ("probing.py", "def late():\n    from riprap.cli import app"),
        ("attic/box.py", "import math"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, module: str, line: str) -> None:
    file = tmp_path / module
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line, encoding="utf-8")
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("__init__.py", "from riprap.cli import app"),
        ("schema.py", "from riprap.types import ConfigError"),
        ("monitor/monitor.py", "from riprap import probing\nimport torch"),
        ("signals/features/drift.py", "from ..base import Signal"),
    ],
)
def test_a_right_arrow_is_not(tmp_path: Path, module: str, line: str) -> None:
    file = tmp_path / module
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line, encoding="utf-8")
    assert violations(tmp_path) == []
