"""Command line of Riprap; `main` is its entry point. Exit codes: 0 fine, 1 error, 2 a finding."""

from __future__ import annotations

import sys

from riprap._extras import require
from riprap.errors import MissingExtraError


def main() -> None:
    """Run the command line; without typer or rich, name the extra to install and exit with 1."""
    try:
        require("cli", "typer", "rich")
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    from riprap.cli._app import app

    app(prog_name="riprap")
