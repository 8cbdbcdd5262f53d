"""The command line as a whole: how it ends where the words are wrong."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from riprap.cli._app import app


@pytest.mark.parametrize(
    "words", [["nonsense"], ["study", "nonsense"], ["watch"], ["doctor", "--what"]]
)
def test_a_typing_error_is_an_error_and_no_finding(words: list[str]) -> None:
    assert CliRunner().invoke(app, words).exit_code == 1


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for name in ("demo", "watch", "select", "doctor", "report", "study", "protocol"):
        assert name in shown.output
