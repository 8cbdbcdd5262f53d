"""`riprap dashboard`: a live page of runs."""

from __future__ import annotations

from pathlib import Path

import typer

from riprap.cli._common import command

app = typer.Typer()


@app.command()
@command
def dashboard(
    runs: list[Path] = typer.Argument(
        ..., help="Folders of runs, or folders below which runs appear."
    ),
    host: str = typer.Option("127.0.0.1", help="Address to listen at; another needs --token."),
    port: int = typer.Option(8642, min=0, max=65535, help="Port to listen at; 0: a free one."),
    token: str | None = typer.Option(
        None, envvar="RIPRAP_TOKEN", help="Secret that every reader needs; 16 characters or more."
    ),
) -> int:
    """Serve a live page of RUNS, read from their records while they train; Ctrl-C ends it."""
    from riprap.dashboard import serve

    serve(runs, host, port, token, lambda address: typer.echo(f"live page: {address}"))
    return 0
