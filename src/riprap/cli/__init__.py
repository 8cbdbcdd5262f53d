"""The command line: parse, call, print. Exit codes: 0 fine, 1 an error, 2 a finding."""

import typer

from riprap.cli.diagnosing import app as diagnosing_app
from riprap.cli.protocols import protocol_app
from riprap.cli.runs import app as runs_app
from riprap.cli.studies import study_app

app = typer.Typer(
    help="Watch a model while it is trained further; see what erodes before it breaks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(runs_app)
app.add_typer(diagnosing_app)
app.add_typer(study_app, name="study")
app.add_typer(protocol_app, name="protocol")

__all__ = ["app"]
