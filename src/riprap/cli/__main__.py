"""`python -m riprap.cli`."""

from riprap.cli import app

app()
