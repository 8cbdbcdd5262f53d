"""Depth and time to break: known orders give known correlations, with censored runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.onset import depth
from experiments.onset.depth import Held
from experiments.onset.trace import BehaviorTrace, Trace


def make_held(run: str, margin: float, summed: float, broke: bool = True, world: str = "w") -> Held:
    return Held(run, world, 1.0, margin, margin / 2, int(10 * summed), summed, broke, np.nan)


def share(text: str) -> float:
    return float(text.split(" ")[0].replace("−", "-"))


def test_deeper_behaviors_that_last_longer_are_concordant() -> None:
    found = [make_held(str(at), at, at) for at in range(1, 8)]
    found += [make_held("kept", 20, 8, broke=False)]
    margins = np.array([own.margin for own in found])
    assert share(depth.concordance(found, margins, "world")) == 1
    assert share(depth.concordance(found, -margins, "world")) == 0
    assert depth.concordance(found, margins, "world").endswith("of 28 pairs")
    assert depth.concordance(found, margins, "run") == "–"  # no two of one run


def test_a_run_that_ended_before_a_break_is_not_compared_with_it() -> None:
    found = [make_held("a", 1, 5), make_held("b", 2, 3, broke=False), make_held("c", 3, 9)]
    margins = np.array([1.0, 2.0, 3.0])
    assert depth.concordance(found, margins, "world").endswith("of 1 pairs")


def test_correlations_are_within_worlds() -> None:
    """Between the worlds depth and time fall together; within each they rise together."""
    found = [make_held(f"a{at}", at, 100 + at) for at in range(6)]
    found += [make_held(f"b{at}", 50 + at, at, world="v") for at in range(6)]
    margins, times = (
        np.array([getattr(own, key) for own in found]) for key in ("margin", "summed")
    )
    text = depth.correlation(found, margins, times)
    assert share(text) == 1 and text.endswith("of 12")


def test_the_page_has_a_line_for_each_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "REPLICATES", 50)
    time, ones = np.arange(61), np.ones(60)
    for at in range(5):
        behaviors = {
            name: BehaviorTrace(
                (1 + extra) * np.linspace(0.9, 1.1, 10) - 0.01 * (at + 1) * time[:, None],
                np.zeros(10), ones, np.array([1.0 + at]),
            )
            for name, extra in (("short", 0.0), ("long", 0.5))
        }  # fmt: skip
        half = "exploratory" if at % 2 else "confirmatory"
        about = {"world": "w", "share": 0.1}
        Trace("made", f"run{at}", half, about, time, ones, ones, time[:1], behaviors).save(tmp_path)  # type: ignore[arg-type]
    page = tmp_path / "depth.md"
    depth.main(["--runs", str(tmp_path / "made"), "--page", str(page)])
    text = page.read_text()
    assert "5 runs, 10 behavior-runs, 7 breaks" in text
    for name in depth.DEPTHS:
        assert f"| {name} | " in text
    (line,) = (line for line in text.splitlines() if line.startswith("| mean margin /"))
    assert "1.00 [1.00, 1.00] of 41 pairs" in line  # time is margin over fall
