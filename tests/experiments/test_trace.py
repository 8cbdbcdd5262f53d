"""A stored run is the run that was recorded, and its breaks are those of its margins."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.onset.trace import BehaviorTrace, Trace, load_corpus


def make(name: str, half: str, margins: np.ndarray) -> Trace:
    steps = np.array([0, 1, 2, 4])
    own = BehaviorTrace(
        margins, np.array([0, 0, 1, 1]), np.array([0.5, np.nan, -1.0, 2.0]), np.array([3.0])
    )
    return Trace(
        "unlike", name, half, {"seed": 1}, steps, np.ones(4), np.ones(4), np.array([0]), {"b": own}
    )  # fmt: skip


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    rising = np.arange(16, dtype=float).reshape(4, 4) + 1
    whole, tiny = make("whole", "exploratory", rising), make("tiny", "exploratory", rising * 1e-9)
    for trace in (whole, tiny, make("other", "confirmatory", rising)):
        trace.save(tmp_path)
    again = load_corpus(tmp_path, "unlike", "exploratory")
    assert [trace.name for trace in again] == ["tiny", "whole"]
    for read, written in zip(again, (tiny, whole), strict=True):
        assert (read.half, read.about, read.n_steps) == (written.half, written.about, 4)
        for series in ("steps", "rates", "losses", "refreshed"):
            np.testing.assert_array_equal(getattr(read, series), getattr(written, series))
        own, before = read.behaviors["b"], written.behaviors["b"]
        np.testing.assert_allclose(own.margins, before.margins, rtol=1e-6)
        np.testing.assert_array_equal(own.interference, before.interference)
        np.testing.assert_array_equal(own.groups, before.groups)


def test_a_break_is_the_first_score_under_the_floor() -> None:
    margins = np.ones((4, 4))
    margins[2:, 0] = -1  # at steps 2 and 4
    assert make("broken", "exploratory", margins).break_step("b") == 2
    assert make("healthy", "exploratory", np.ones((4, 4))).break_step("b") is None
    lost = make("lost", "exploratory", -np.ones((4, 4)))
    assert lost.break_step("b") is None and lost.starts_broken("b")
