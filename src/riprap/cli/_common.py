"""Parts that all commands share: exit codes, errors, output, and names that changed."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from riprap._text import escape_control_chars
from riprap._warnings import OWN
from riprap.errors import RiprapError

FINDING = 2
# 2 is a finding, and a script must not mistake a typing error for one. Typer has a click of its own
# inside, or uses the installed one, by its version: its BadParameter knows which.
_USAGE = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
_USAGE.exit_code = 1  # type: ignore[attr-defined]
AS_JSON = typer.Option(False, "--json", help="Print the result as JSON and nothing else.")
# Named here because `--help` imports nothing heavy; tests/test_cli.py compares them.
PROBE_SETS = "arithmetic, general_knowledge, instruction_format, over_refusal, refusal"
STRATEGIES = (
    "random",
    "low",
    "moderate",
    "moderate_by_loss",
    "high",
    "proxy",
    "least_harm",
    "random_by_length",
    "random_by_category",
)

REPLACED_COMMANDS = {
    "protocol": "`riprap protocol` is now `riprap policy`",
    "study": "the experiments moved: see `python -m experiments list` in a checkout",
}
RENAMED_OPTIONS = {  # command -> old option -> new option
    "diagnose": {
        "--never": "--naive-model",
        "--openers": "--refusal-prefixes",
        "--probes": "--n-probes",
    },
    "policy": {"--protocol": "--policy"},
    "select": {"--batch": "--batch-size", "--openers": "--refusal-prefixes"},
}


class CommandGroup(TyperGroup):
    """The commands of `riprap`; old names of commands and options are refused with the new ones."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of `args`."""
        name, *rest = args
        if name in REPLACED_COMMANDS:
            raise _exit_with_error(REPLACED_COMMANDS[name])
        for option in (argument.partition("=")[0] for argument in rest):
            new = RENAMED_OPTIONS.get(name, {}).get(option)
            if new is not None:
                raise _exit_with_error(f"option {option} of `riprap {name}` is now {new}")
        return super().resolve_command(ctx, args)


def command(function: Callable[..., int]) -> Callable[..., None]:
    """Exit with a command's return value; turn a RiprapError into one sentence and exit code 1.

    Warnings of Riprap are shown as sentences too, without the line of code that warned.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        whole, warnings.formatwarning = warnings.formatwarning, _format_warning
        try:
            code = function(*args, **kwargs)
        except RiprapError as error:
            raise _exit_with_error(str(error)) from error
        finally:
            warnings.formatwarning = whole
        raise typer.Exit(code)

    return run


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    text = str(message)
    if text.startswith(OWN):
        return f"{escape_control_chars(text)}\n"
    return f"{filename}:{lineno}: {category.__name__}: {text}\n"


def _exit_with_error(message: str) -> typer.Exit:
    text = Text.assemble(("error: ", "bold red"), escape_control_chars(message))
    Console(stderr=True).print(text, soft_wrap=True)
    return typer.Exit(1)


def print_result(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """Print a result: as JSON for programs, as lines for people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))
    else:
        for line in lines:
            typer.echo(escape_control_chars(line))
