"""What a run of the depth study showed, and whether the prediction held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from experiments.depth.plan import Degree, Plan
from experiments.depth.simulate import MARGINS, folder_of
from experiments.harness.preregistration import Preregistration
from riprap.detectors import score
from riprap.record import Reader
from riprap.types import Level

BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Installed:
    """B in one finished run.

    Attributes:
        depth: ‖g_b‖ at the start; `margin`: the mean margin there.
        warned: first alert at the plan's level or above; `broke`: first step under the floor.
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
    def load(cls, degree: Degree, seed: int, preregistration: Preregistration) -> Installed:
        """Read a run's record and margins."""
        folder, plan = folder_of(degree, seed), Plan.of(preregistration)
        with Reader(folder) as reader:
            depth = next(
                r.value for r in reader.readings() if (r.signal, r.behavior) == ("depth", "B")
            )
            rank = Level(plan.window_from).rank
            alerts = [a for a in reader.alerts() if a.behavior == "B" and a.level.rank >= rank]
            floor = next(b["floor"] for b in reader.meta()["behaviors"] if b["name"] == "B")
        with np.load(folder / MARGINS) as arrays:
            margins = arrays["B"]
        under = [score(values) < floor for values in margins]
        return cls(
            degree,
            seed,
            float(depth or "nan"),
            float(margins[0].mean()),
            min((alert.step for alert in alerts), default=None),
            int(np.argmax(under)) if any(under) else None,
            len(margins) - 1,
        )

    @property
    def window(self) -> int:
        """Steps from the first warning to the break, or to the end of the run; 0 without one."""
        end = self.steps if self.broke is None else self.broke
        return 0 if self.warned is None else max(end - self.warned, 0)


def correlations(found: Sequence[Installed]) -> list[dict[str, Any]]:
    """Spearman of the window with the depth, over all runs and within each way to install."""
    by_steps = [
        one for one in found if (one.degree.decay, one.degree.share) == most_common_way(found)
    ]
    return [
        _row("all runs", found),
        _row("by steps of training alone", by_steps),
        _row("all runs, the margin at the start held fixed", found, partial=True),
    ]


def most_common_way(found: Sequence[Installed]) -> tuple[float, float]:
    """Decay and share of most degrees: those that differ in steps alone."""
    pairs = [(one.degree.decay, one.degree.share) for one in found]
    return max(set(pairs), key=pairs.count)


def _row(name: str, found: Sequence[Installed], partial: bool = False) -> dict[str, Any]:
    value, low, high = interval(found, partial)
    return {
        "over": name,
        "runs": len(found),
        "Spearman of window with −‖g_b‖": f"{value:.2f} [{low:.2f}, {high:.2f}]",
    }


def interval(found: Sequence[Installed], partial: bool = False) -> tuple[float, float, float]:
    """Spearman of the window with −‖g_b‖, and its 95 % interval from bootstraps over runs.

    Args:
        partial: of what the ranks of the margin at the start leave over.
    """
    values = np.array([(-one.depth, one.window, one.margin) for one in found])
    rng = np.random.default_rng(0)
    drawn = [
        _spearman(values[rng.integers(len(values), size=len(values))], partial)
        for _ in range(BOOTSTRAPS)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return _spearman(values, partial), float(low), float(high)


def _spearman(values: np.ndarray, partial: bool) -> float:
    with np.errstate(all="ignore"):
        if not partial:
            return float(spearmanr(values[:, 0], values[:, 1]).statistic)
        depth, window, margin = (rankdata(column) - (len(values) + 1) / 2 for column in values.T)
        rest = [one - margin * (one @ margin) / (margin @ margin) for one in (depth, window)]
        return float(np.corrcoef(rest[0], rest[1])[0, 1])


def verdict(found: Sequence[Installed]) -> str:
    """Whether the detection window grows with depth, over all runs."""
    _, low, high = interval(found)
    if low > 0:
        return "supported: the window grows with depth"
    return "contradicted: the window shrinks with depth" if high < 0 else "not settled"
