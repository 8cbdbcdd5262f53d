"""The command line: parse, call, print. Exit codes: 0 fine, 1 an error, 2 a finding."""

import typer

from riprap.cli._diagnose import app as diagnosing_app
from riprap.cli._policies import policy_app
from riprap.cli._runs import app as runs_app

app = typer.Typer(
    help="Watch a model while it is trained further; see what erodes before it breaks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(runs_app)
app.add_typer(diagnosing_app)
app.add_typer(policy_app, name="protocol")

from riprap.cli._common import AS_JSON, command, say

__all__ = ["AS_JSON", "app", "command", "say"]
