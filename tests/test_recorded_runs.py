"""The runs for readers: unlike each other, with pages and titles that do not say what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from riprap.conclusion import conclude
from tools.recorded_runs import RUNS, TITLE, make_runs


@pytest.mark.slow
def test_each_run_has_a_page_that_loads_nothing(tmp_path: Path) -> None:
    (page,) = make_runs(tmp_path, steps=4, names=("2",))  # nothing is trained
    assert page == tmp_path / "2" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert TITLE in text and 'src="http' not in text
    assert conclude(tmp_path / "2").line.startswith("Training changed nothing")


def test_no_two_runs_are_alike() -> None:
    assert len(set(RUNS.values())) == len(RUNS) == 5
