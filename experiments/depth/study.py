"""Does a more deeply installed behavior leave more time between warning and break?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from scipy.stats import rankdata, spearmanr

from experiments.depth.plan import Degree, Plan
from experiments.depth.simulate import BEHAVIOR, simulate
from experiments.harness.markdown import number
from experiments.harness.recorded_run import RecordedRun, read_record
from experiments.harness.study import Session, Study
from riprap.report import apply_style, inline_data
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
    common = most_common_setting(runs)
    by_steps = [run for run in runs if (run.degree.decay, run.degree.share) == common]
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


def depth_figure(runs: Sequence[DepthRun]) -> alt.Chart:
    """Plot one point a run, deeper to the right."""
    common = most_common_setting(runs)
    kinds = ("less of it, or more decay", "more steps")
    rows = [
        {
            "depth": run.depth,
            "window": run.window,
            "installed": kinds[(run.degree.decay, run.degree.share) == common],
            "end": "broke" if run.broke is not None else "still standing at the end",
        }
        for run in runs
    ]
    x = alt.X(
        "depth:Q",
        title="norm of the loss gradient at the start (log; deeper to the right)",
        scale=alt.Scale(type="log", reverse=True),
        axis=alt.Axis(format=".0e", values=[1, 0.1, 0.01, 0.001, 0.0001]),
    )
    symlog = alt.Scale(type="symlog", constant=10)
    y = alt.Y("window:Q", title="steps from first warning to break", scale=symlog)
    color, shape = alt.Color("installed:N", title=None), alt.Shape("end:N", title=None)
    chart = alt.Chart(inline_data(rows)).mark_point(size=70, filled=True, opacity=0.8)
    encoded = chart.encode(x=x, y=y, color=color, shape=shape)
    title = "Does a deeper behavior leave more time?"
    return apply_style(encoded.properties(width=460, height=300, title=title))


def collect(margins: list[dict[str, np.ndarray]], session: Session[Plan]) -> list[DepthRun]:
    """Return the runs with what their records say."""
    plan, runs = session.plan, []
    for pair, arrays in zip(plan.runs(session.exploratory), margins, strict=True):
        folder = simulate.path(*pair, session.preregistration).parent
        runs.append(DepthRun.load(*pair, folder, arrays, plan))
    return runs


def sections(runs: Sequence[DepthRun], _plan: Plan) -> dict[str, Any]:
    """Return the tables and texts of the page."""
    rows = [
        {
            "steps": run.degree.steps,
            "weight decay": f"{run.degree.decay:g}",
            "share of B": f"{run.degree.share:g}",
            "seed": run.seed,
            "depth ‖g_b‖": f"{run.depth:.2g}",
            "margin at the start": number(run.margin, 2),
            "first warning": number(run.warned),
            "break": number(run.broke),
            "window": number(run.window) + ("" if run.broke is not None else " or more"),
        }
        for run in runs
    ]
    return {"conclusion": conclusion(runs), "correlations": correlations(runs), "runs": rows}


STUDY = Study(
    name="depth",
    plan=Plan,
    jobs=lambda s: [(*pair, s.preregistration) for pair in s.plan.runs(s.exploratory)],
    simulate=simulate,
    collect=collect,
    claims=lambda runs, _: {"the window grows with depth": conclusion(runs)},
    sections=sections,
    figures={"depth": lambda runs, _: depth_figure(runs)},
)
