"""Core works without the extras, and whatever needs an extra names it in one sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from riprap._extras import EXTRAS, require
from riprap.errors import ConfigError, MissingExtraError

ROOT = Path(__file__).parents[1]
MODULES = sorted({module for modules in EXTRAS.values() for module in modules} | {"markupsafe"})

BLOCK = """
import json, sys

class Hide:
    # Does not find the blocked modules, as if they were not installed.

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        blocked = name.partition(".")[0] in BLOCKED
        return None if blocked else self.finder.find_spec(name, *arguments)

    def __getattr__(self, name):
        return getattr(self.finder, name)

BLOCKED = set(json.loads(sys.argv[1]))
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
"""

CORE = """
import importlib, pkgutil
import riprap
for room in ("behaviors", "detectors", "diagnosis", "evaluation", "guards", "linalg", "monitor",
             "prediction", "record", "selection", "signals", "toy"):
    package = importlib.import_module(f"riprap.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)

import torch
from riprap import Behavior, Monitor, preflight
assert callable(preflight)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
probes = torch.eye(4)
behavior = Behavior("large", probes, lambda m, p: m(p).amax(1), 0.5)
monitor = Monitor([behavior], probe_every=2, run_dir=sys.argv[2])
with monitor.watch(model, optimizer):
    for _ in range(3):
        optimizer.zero_grad()
        model(probes).sum().backward()
        optimizer.step()
assert monitor.step == 3
"""

MISSING = {
    "import riprap.report": "report",
    "import riprap.dashboard": "dashboard",
    "import riprap.integrations.hf": "hf",
    "import riprap.integrations.lightning": "lightning",
    "import riprap.commands": "cli",
    "import riprap.fastslow": "fastslow",
    "riprap.toy.ToyWorld().untrained(0)": "hf",
    "monitor.history()": "report",
}


def run_blocked(
    code: str, modules: list[str], *arguments: str | Path
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK + code, json.dumps(modules), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_core_imports_and_monitors_without_extras(tmp_path: Path) -> None:
    lines = [CORE, "from riprap.errors import MissingExtraError"]
    for statement, extra in MISSING.items():
        lines += [
            f"try:\n    {statement}",
            "except MissingExtraError as error:",
            f"    assert str(error).endswith(\"run pip install 'riprap[{extra}]'\"), error",
            f'else:\n    raise AssertionError("{statement}")',
        ]
    result = run_blocked("\n".join(lines), MODULES, tmp_path / "run")
    assert result.returncode == 0, result.stderr


def cli(modules: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "sys.argv = ['riprap', *sys.argv[2:]]\nfrom riprap.cli import main\nmain()"
    return run_blocked(code, modules, *arguments)


def test_the_command_line_without_its_extra_names_it() -> None:
    result = cli(MODULES, "--help")
    assert result.returncode == 1
    assert result.stderr == "error: typer is not installed: run pip install 'riprap[cli]'\n"


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["demo"], "hf"),
        (["report", "."], "report"),
        (["dashboard", "."], "dashboard"),
        (["watch", "watch.yaml"], "hf"),
        (["fastslow", "fastslow.yaml"], "hf"),
        (["preflight", "watch.yaml"], "hf"),
        (["select", "rows.jsonl", "--model", "m", "--out", "o"], "hf"),
        (["diagnose", "base", "tuned"], "hf"),
    ],
)
def test_a_command_without_its_extra_names_it(arguments: list[str], extra: str) -> None:
    modules = [module for module in MODULES if module not in EXTRAS["cli"]]
    result = cli(modules, *arguments)
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1].endswith(f"run pip install 'riprap[{extra}]'")
    assert "Traceback" not in result.stderr


def test_the_doctor_needs_the_command_line_only() -> None:
    modules = [module for module in MODULES if module not in EXTRAS["cli"]]
    result = cli(modules, "doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "extras installed: riprap[cli]\n" in result.stdout
    assert "riprap[hf] (transformers, trl, peft, accelerate, datasets)" in result.stdout


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    distributions = {
        "vl-convert-python": "vl_convert",
        "sae-lens": "sae_lens",
        "lm-eval": "lm_eval",
    }
    for extra, modules in EXTRAS.items():
        names = [re.split(r"[<>=]", text)[0] for text in project["optional-dependencies"][extra]]
        assert {distributions.get(name, name) for name in names} == set(modules), extra


def test_require_names_the_module_and_its_extra() -> None:
    require("report", "json")
    with pytest.raises(MissingExtraError, match=r"^no_such is not .* 'riprap\[report\]'$") as error:
        require("report", "json", "no_such")
    assert isinstance(error.value, ConfigError) and isinstance(error.value, ImportError)
