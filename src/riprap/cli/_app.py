"""The Typer application: all commands of `riprap`."""

from __future__ import annotations

import typer

from riprap import __version__
from riprap.cli._common import CommandGroup
from riprap.cli._dashboard import app as dashboard_app
from riprap.cli._diagnose import app as diagnose_app
from riprap.cli._eval import app as eval_app
from riprap.cli._gate import app as gate_app
from riprap.cli._policies import policy_app
from riprap.cli._preflight import app as preflight_app
from riprap.cli._runs import app as runs_app

app = typer.Typer(
    cls=CommandGroup,
    help="Monitor a model during fine-tuning: get a warning before its existing behaviors break.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(runs_app)
app.add_typer(dashboard_app)
app.add_typer(preflight_app)
app.add_typer(diagnose_app)
app.add_typer(eval_app)
app.add_typer(gate_app)
app.add_typer(policy_app, name="policy")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"riprap {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Accept the options that stand before a command."""
