"""What all commands share: how they end, what they print."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from riprap._text import escape_control_chars
from riprap.errors import RiprapError

FINDING = 2
# 2 is a finding, and a script must not mistake a typing error for one. Typer has a click of its own
# inside, or uses the installed one, by its version: its BadParameter knows which.
_USAGE = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
_USAGE.exit_code = 1  # type: ignore[attr-defined]
AS_JSON = typer.Option(False, "--json", help="Print the result as JSON and nothing else.")


def command(function: Callable[..., int]) -> Callable[..., None]:
    """Run a command; an error of ours becomes one sentence and exit code 1."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = function(*args, **kwargs)
        except RiprapError as error:
            text = Text.assemble(("error: ", "bold red"), escape_control_chars(str(error)))
            Console(stderr=True).print(text, soft_wrap=True)
            raise typer.Exit(1) from error
        raise typer.Exit(code)

    return run


def say(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """Print a result for machines or for people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str))
    else:
        for line in lines:
            typer.echo(escape_control_chars(line))
