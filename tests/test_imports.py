"""Structure of the code: floors, import circles, private modules, what a bare import loads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "riprap"
FACE = "riprap"  # the package's own __init__, which stands on top of all rooms
FLOORS = [
    {
        "types",
        "errors",
        "_text",
        "_formatting",
        "_glossary",
        "_warnings",
        "_checks",
        "_config",
        "_extras",
        "linalg",
        "_distributed",
    },
    {"behaviors", "record"},
    {"evaluation"},
    {"signals", "selection", "detectors"},
    {"guards", "diagnosis", "prediction", "conclusion", "evals"},
    {"monitor"},
    {"report", "dashboard", "toy"},
    {"integrations", "fastslow"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def imported(tree: ast.AST, package: list[str]) -> set[str]:
    """Full names that a module of `package` imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = [*base, *((node.module or "").split(".") if node.module else [])]
            names.update(".".join([*origin, alias.name]) for alias in node.names)
    return names


def modules(root: Path, face: str) -> dict[str, Path]:
    """Files of a package by their full module names."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        parts = [face, *file.relative_to(root).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def violations(root: Path) -> list[str]:
    """Imports under `root` that do not go down to a lower floor."""
    found = []
    for file in sorted(root.rglob("*.py")):
        parts = [FACE, *file.relative_to(root).with_suffix("").parts]
        if parts == [FACE, "__init__"]:
            continue
        here = parts[1]
        if here not in FLOOR:
            found.append(f"{file.name}: room {here!r} has no floor")
            continue
        for name in sorted(imported(ast.parse(file.read_text(encoding="utf-8")), parts[:-1])):
            target = name.split(".")
            if target[0] == "experiments":
                found.append(f"{'.'.join(parts)} imports {name}")
            if target[0] != FACE or name == "riprap.__version__":
                continue
            there = target[1] if len(target) > 1 and target[1] in FLOOR else FACE
            ground = FLOOR[here] == 0 and FLOOR.get(there) == 0
            if there != here and not ground and FLOOR.get(there, len(FLOORS)) >= FLOOR[here]:
                found.append(f"{'.'.join(parts)} imports {name}")
    return found


def private_imports(root: Path, face: str) -> list[str]:
    """Imports of a private module from outside of the package that it is in."""
    found = []
    for module, file in modules(root, face).items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name in sorted(imported(tree, package.split("."))):
            parts = name.split(".")
            if parts[0] != FACE:
                continue
            at = next((i for i, part in enumerate(parts) if part.startswith("_")), None)
            if at is None or parts[at].startswith("__"):
                continue
            owner = ".".join(parts[:at])
            if owner != FACE and not f"{package}.".startswith(f"{owner}."):
                found.append(f"{module} imports {name}")
    return found


def circles(root: Path, face: str) -> list[list[str]]:
    """Groups of modules that import each other; imports for type checkers do not count."""
    files = modules(root, face)
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        if (
            file.name == "__init__.py"
        ):  # a package offers names, and is entered by all of its modules
            graph[module] = set()
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        names = imported(tree, module.split(".")[:-1])
        graph[module] = {
            target
            for name in names
            for target in (name, name.rpartition(".")[0])
            if target in files and files[target].name != "__init__.py" and target != module
        }
    return [sorted(group) for group in _strongly_connected(graph) if len(group) > 1]


def package_circles(root: Path, face: str) -> list[list[str]]:
    """Groups of packages that import each other; a package and those inside it are no circle."""
    files = modules(root, face)
    packages = {module for module, file in files.items() if file.name == "__init__.py"}
    graph: dict[str, set[str]] = {package: set() for package in packages}
    for module, file in files.items():
        package = module if module in packages else module.rpartition(".")[0]
        if package == face:
            continue
        for name in imported(ast.parse(file.read_text(encoding="utf-8")), package.split(".")):
            target = name
            while target and target not in packages:
                target = target.rpartition(".")[0]
            related = f"{package}.".startswith(f"{target}.") or target.startswith(f"{package}.")
            if target and target != face and not related:
                graph[package].add(target)
    return [sorted(group) for group in _strongly_connected(graph) if len(group) > 1]


def _strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Nodes grouped by mutual reachability (small graphs only)."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            for target in graph.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        reach[start] = seen
    groups: list[set[str]] = []
    for node in graph:
        group = {node} | {other for other in reach[node] if node in reach[other]}
        if group not in groups:
            groups.append(group)
    return groups


def test_every_warning_is_one_that_cannot_end_training() -> None:
    """`python -W error` makes an exception of `warnings.warn`; `_warnings.warn` logs it then."""
    raw = [
        str(file.relative_to(SOURCE))
        for file in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
    ]
    assert raw == ["_warnings.py"]


def test_no_arrow_runs_up() -> None:
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("folder", "face"), [(SOURCE, "riprap"), (ROOT / "experiments", "experiments")]
)
def test_no_import_circles(folder: Path, face: str) -> None:
    assert circles(folder, face) == []
    assert package_circles(folder, face) == []


@pytest.mark.parametrize(
    ("folder", "face"),
    [
        (SOURCE, "riprap"),
        (ROOT / "experiments", "experiments"),
        (ROOT / "benchmarks", "benchmarks"),
        (ROOT / "examples", "examples"),
    ],
)
def test_private_modules_are_imported_in_their_package_only(folder: Path, face: str) -> None:
    assert private_imports(folder, face) == []


def test_no_function_or_class_shadows_a_module() -> None:
    shadowed = []
    for module, file in modules(SOURCE, FACE).items():
        if file.name != "__init__.py":
            continue
        inside = {path.stem for path in file.parent.iterdir() if path.suffix == ".py"}
        inside |= {path.parent.name for path in file.parent.glob("*/__init__.py")}
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                names = {a.asname or a.name for a in node.names if node.module != module}
                shadowed += [f"{module}.{name}" for name in names & inside]
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in inside:
                shadowed.append(f"{module}.{node.name}")
    assert shadowed == []


def test_implementation_modules_are_private() -> None:
    public = {"types", "errors", "__init__", "__main__"}
    public |= {"hf", "lightning", "axolotl", "accelerate", "lm_eval", "smollm2", "trackers"}
    names = {file.stem for file in SOURCE.rglob("*.py")}
    assert {name for name in names if not name.startswith("_")} <= public


def test_every_room_was_walked() -> None:
    walked = {
        file.relative_to(SOURCE).parts[0].removesuffix(".py") for file in SOURCE.rglob("*.py")
    }
    assert set(FLOOR) <= walked | {"__main__"}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("linalg/_vectors.py", "from riprap.behaviors import Behavior"),
        ("behaviors/_margins.py", "import riprap.monitor._hooks"),
        ("signals/_base.py", "from riprap.detectors import BehaviorHistory"),
        ("signals/features/_drift.py", "from ...monitor import Monitor"),
        ("record/_store.py", "from riprap import Monitor"),
        ("evaluation.py", "def late():\n    from riprap.cli import app"),
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
        ("_config.py", "from riprap.errors import ConfigError"),
        ("monitor/_monitor.py", "from riprap import evaluation\nimport torch"),
        ("signals/features/_drift.py", "from .._base import Signal"),
    ],
)
def test_a_right_arrow_is_not(tmp_path: Path, module: str, line: str) -> None:
    file = tmp_path / module
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line, encoding="utf-8")
    assert violations(tmp_path) == []


def write(folder: Path, files: dict[str, str]) -> Path:
    """Files of a package; each folder becomes a package."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text, encoding="utf-8")
    return folder


def test_a_circle_is_found(tmp_path: Path) -> None:
    files = {"a/_one.py": "from riprap.a import _two", "a/_two.py": "import riprap.a._one"}
    assert circles(write(tmp_path, files), FACE) == [["riprap.a._one", "riprap.a._two"]]


def test_a_circle_of_packages_is_found(tmp_path: Path) -> None:
    files = {"a/_one.py": "from riprap.b import two", "b/_two.py": "from riprap.a import one"}
    assert package_circles(write(tmp_path, files), FACE) == [["riprap.a", "riprap.b"]]


def test_an_import_of_a_private_module_is_found(tmp_path: Path) -> None:
    files = {"a/_one.py": "", "b/_two.py": "from riprap.a._one import x"}
    assert private_imports(write(tmp_path, files), FACE) == [
        "riprap.b._two imports riprap.a._one.x"
    ]
