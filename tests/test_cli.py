"""The command line: its commands, its exit codes, and the refusal of old names."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from riprap import __version__
from riprap.cli import _common as common
from riprap.cli import _runs as runs
from riprap.cli._app import app

COMMANDS = ("demo", "watch", "preflight", "select", "diagnose", "report", "policy", "doctor")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["policy", "nonsense"], ["watch"], ["doctor", "--what"]]
)
def test_a_typing_error_is_an_error_and_not_a_finding(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 1


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert name in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_output(command: str) -> None:
    subcommands = ["freeze", "verify", "amend", "calibrate"] if command == "policy" else [None]
    for subcommand in subcommands:
        arguments = [command, *([subcommand] if subcommand else []), "--help"]
        result = CliRunner().invoke(app, arguments, terminal_width=200)
        assert result.exit_code == 0
        assert "--json" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["study", "toy"], "see `python -m experiments list` in a checkout"),
        (["protocol", "freeze", "a.yaml"], "`riprap protocol` is now `riprap policy`"),
        (["diagnose", "a", "b", "--never=c"], "option --never of `riprap diagnose` is now --naive"),
        (["diagnose", "a", "b", "--probes", "9"], "is now --n-probes"),
        (["select", "a.jsonl", "--openers", "Sorry"], "is now --refusal-prefixes"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_version() -> None:
    command = [sys.executable, "-m", "riprap", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"riprap {__version__}\n")


def test_help_imports_nothing_heavy() -> None:
    """Help within a second, even on a machine ten times slower than ours."""
    code = (
        "import sys\nfrom riprap.cli import main\n"
        "sys.argv = ['riprap', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "import json\nprint(json.dumps(sorted(sys.modules)))"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    modules = set(json.loads(result.stdout.splitlines()[-1]))
    assert not modules & {"torch", "numpy", "transformers", "pandas", "altair", "pydantic"}
    assert time.monotonic() - started < 10


def test_help_lists_the_values() -> None:
    from riprap.behaviors import probe_sets
    from riprap.commands.select import STRATEGIES

    assert tuple(STRATEGIES) == common.STRATEGIES
    assert probe_sets.names() == common.PROBE_SETS.split(", ")
    for command in ("select", "diagnose"):
        result = CliRunner().invoke(app, [command, "--help"], terminal_width=300)
        assert all(name in result.output for name in probe_sets.names()), command
    result = CliRunner().invoke(app, ["select", "--help"], terminal_width=300)
    assert all(name in result.output for name in STRATEGIES)


@pytest.mark.parametrize(
    ("broken", "code"), [({"a": None}, 0), ({"a": 30}, 2)], ids=["below its floor", "broke"]
)
def test_only_a_break_is_a_finding(broken: dict[str, int | None], code: int) -> None:
    """A behavior that starts under its floor did not break."""
    outcome = {"broken": broken, "below_floor": {"a": 0.5}, "summary": "a.", "report": None}
    assert runs._finish_watch(outcome | {"run": "r"}, as_json=False) == code
