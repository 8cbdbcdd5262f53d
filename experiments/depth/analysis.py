"""The detection window of each run, and its correlation with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from experiments.depth.plan import Degree, Plan
from experiments.depth.simulate import BEHAVIOR
from experiments.harness.recorded_run import RecordedRun, read_record
from riprap.types import Level

BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class DepthRun:
    """B in one finished run.

    Attributes:
        depth: ‖g_b‖ at the start; `margin`: the mean margin there.
        warned: step of the first alert at the plan's level or above.
        broke: first step with the score below the floor.
        steps: length of the run.
    """

    degree: Degree
    seed: int
    depth: float
    margin: float
    warned: int | None
    broke: int | None
    steps: int

    @classmethod
    def load(
        cls, degree: Degree, seed: int, folder: Path, arrays: Mapping[str, np.ndarray], plan: Plan
    ) -> DepthRun:
        """Read a run's record; `arrays` are its margins at every step."""
        histories, alerts, readings = read_record(folder)
        rank = Level(plan.window_from).rank
        warned = [a.step for a in alerts if a.behavior == BEHAVIOR and a.level.rank >= rank]
        depth = next(r.value for r in readings if (r.signal, r.behavior) == ("depth", BEHAVIOR))
        run = RecordedRun(plan.condition, seed, histories, alerts, dict(arrays))
        return cls(
            degree,
            seed,
            float(depth or "nan"),
            float(arrays[BEHAVIOR][0].mean()),
            min(warned, default=None),
            run.broke(BEHAVIOR),
            len(arrays[BEHAVIOR]) - 1,
        )

    @property
    def window(self) -> int:
        """Steps from the first warning to the break or the end of the run; 0 without a warning."""
        end = self.steps if self.broke is None else self.broke
        return 0 if self.warned is None else max(end - self.warned, 0)


def correlations(runs: Sequence[DepthRun]) -> list[dict[str, Any]]:
    """Return Spearman correlations of window and depth, over all runs and at fixed settings."""
    by_steps = [
        run for run in runs if (run.degree.decay, run.degree.share) == most_common_setting(runs)
    ]
    return [
        _row("all runs", runs),
        _row("by steps of training alone", by_steps),
        _row("all runs, the margin at the start held fixed", runs, partial=True),
    ]


def most_common_setting(runs: Sequence[DepthRun]) -> tuple[float, float]:
    """Return decay and share of the most degrees: those that differ only in steps."""
    pairs = [(run.degree.decay, run.degree.share) for run in runs]
    return max(set(pairs), key=pairs.count)


def _row(name: str, runs: Sequence[DepthRun], partial: bool = False) -> dict[str, Any]:
    value, low, high = interval(runs, partial)
    return {
        "over": name,
        "runs": len(runs),
        "Spearman of window with −‖g_b‖": f"{value:.2f} [{low:.2f}, {high:.2f}]",
    }


def interval(runs: Sequence[DepthRun], partial: bool = False) -> tuple[float, float, float]:
    """Return Spearman of the window with −‖g_b‖, and its 95 % bootstrap interval over runs.

    Args:
        partial: correlate the residuals of the ranks on those of the margin at the start.
    """
    values = np.array([(-run.depth, run.window, run.margin) for run in runs])
    rng = np.random.default_rng(0)
    samples = [
        _spearman(values[rng.integers(len(values), size=len(values))], partial)
        for _ in range(BOOTSTRAPS)
    ]
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return _spearman(values, partial), float(low), float(high)


def _spearman(values: np.ndarray, partial: bool) -> float:
    with np.errstate(all="ignore"):
        if not partial:
            return float(spearmanr(values[:, 0], values[:, 1]).statistic)
        depth, window, margin = (rankdata(column) - (len(values) + 1) / 2 for column in values.T)
        residuals = [one - margin * (one @ margin) / (margin @ margin) for one in (depth, window)]
        return float(np.corrcoef(residuals[0], residuals[1])[0, 1])


def conclusion(runs: Sequence[DepthRun]) -> str:
    """Conclude whether the detection window grows with depth, over all runs."""
    _, low, high = interval(runs)
    if low > 0:
        return "supported: the window grows with depth"
    return "contradicted: the window shrinks with depth" if high < 0 else "not settled"
