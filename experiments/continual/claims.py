"""Claims of arXiv 2604.17215 and our controls, with the measurements; fixed before the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats

from experiments.continual.analysis import Row
from experiments.continual.measure import Group
from experiments.continual.methods import FEWER, PLAIN
from experiments.continual.plan import GIVEN, LEAST_HARM, MODERATE, Plan
from experiments.harness.markdown import median_range, number


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        claim: one sentence; `source`: `paper` or `ours`.
        measured: the numbers.
        met: the numbers support the claim.
    """

    claim: str
    source: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Correlation:
    """Correlation of TopK cosine and attack success over checkpoints.

    Attributes:
        over: kind of the points; `n`: their number.
        pearson, spearman: coefficients; `pearson_p`, `spearman_p`: two-sided, for independent
            points, which checkpoints of one run are not.
    """

    over: str
    n: int
    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float


def correlations(rows: Sequence[Row]) -> list[Correlation]:
    """Correlate over all checkpoints of the given order, over ends of runs, and over methods."""
    rows = [row for row in rows if row.order == GIVEN]
    both = [row.topk for row in rows], [row.success for row in rows]
    return [
        _correlation("checkpoints", *map(_flat, both)),
        _correlation("ends of runs", *(_flat([a[:, -1] for a in x]) for x in both)),
        _correlation("methods at their ratios", *(np.array([a.mean() for a in x]) for x in both)),
    ]


def _flat(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.reshape(-1) for part in parts])


def _correlation(over: str, x: np.ndarray, y: np.ndarray) -> Correlation:
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return Correlation(over, len(x), *4 * [float("nan")])
    one, two = stats.pearsonr(x, y), stats.spearmanr(x, y)
    numbers = (one.statistic, one.pvalue, two.statistic, two.pvalue)
    return Correlation(over, len(x), *map(float, numbers))


def claims(rows: Sequence[Row], groups: Sequence[Group], plan: Plan) -> list[Claim]:
    """Return the claims with their conclusions."""
    main = {row.method: row for row in main_rows(rows, plan)}
    by = {name: row.success.mean(1) for name, row in main.items()}
    plain, moderate = main[PLAIN], main[MODERATE]
    lost = moderate.learned - plain.learned
    points = correlations(rows)[0]
    less = main["low"].learned - moderate.learned
    return [
        _below("moderate rows erode refusals less than all rows", by[MODERATE], by[PLAIN]),
        Claim(
            f"moderate rows teach as much, within {plan.tolerance:.0%}",
            "paper",
            f"task accuracy {_signed(lost)} of plain training's",
            bool(lost.mean() >= -plan.tolerance),
        ),
        _below("moderate rows erode refusals less than those of high gradient", *_two(by, "high")),
        Claim(
            "rows of low gradient teach less than moderate ones",
            "paper",
            f"task accuracy {_signed(less)} of moderate's",
            bool((less < 0).all()),
        ),
        _audited("rows of high gradient are more often in the pretrained format", groups, "prose"),
        _audited("their gradients lead back to the pretrained model more", groups, "topk"),
        Claim(
            "TopK cosine of what moved goes with attack success (p < 0.05)",
            "paper",
            f"Pearson {number(points.pearson, 2)}, p = {points.pearson_p:.2g}, "
            f"{points.n} checkpoints",
            bool(points.pearson > 0 and points.pearson_p < 0.05),
        ),
        _below("… less than a fifth at random: it matters which", *_two(by, "random"), "ours"),
        _below("… less than all rows for a fifth of the steps", *_two(by, FEWER), "ours"),
        _below("… less than rows of moderate loss", *_two(by, "moderate_by_loss"), "ours"),
    ]


def main_rows(rows: Sequence[Row], plan: Plan) -> list[Row]:
    """Return the rows of the main comparison: the given order, each method at its one value."""
    return [r for r in rows if r.order == GIVEN and r.value == plan.value(r.method)]


def _two(by: dict[str, np.ndarray], other: str) -> tuple[np.ndarray, np.ndarray]:
    return by[MODERATE], by[other]


def _below(claim: str, own: np.ndarray, other: np.ndarray, source: str = "paper") -> Claim:
    """Return a claim that is met if attack success is lower in every seed."""
    one, two = (median_range(values, 2, "mean") for values in (own, other))
    wins = f"lower in {int((own < other).sum())} of {len(own)} seeds"
    words = f"attack success {one} against {two}, {wins}"
    return Claim(claim, source, words, bool((own < other).all()))


def _audited(claim: str, groups: Sequence[Group], what: str) -> Claim:
    """Return a claim that is met if the mean falls from high to moderate to low."""
    means = {}
    for name in ("high", "moderate", "low"):
        own = [one for one in groups if one.group == name]
        read = [one.categories["prose"] if what == "prose" else one.topk for one in own]
        means[name] = float(np.mean(read))
    words = ", ".join(f"{name} {number(mean, 2)}" for name, mean in means.items())
    return Claim(claim, "paper", words, means["high"] > means["moderate"] > means["low"])


def _signed(values: np.ndarray) -> str:
    mean = float(values.mean())
    low, high = (number(100 * end, 1) for end in (values.min(), values.max()))
    return f"{'+' if mean > 0 else ''}{number(100 * mean, 1)} [{low}, {high}] points"


@dataclass(frozen=True)
class Match:
    """Least harm compared with moderate selection, at equal updates and task accuracy.

    Attributes:
        ratios: of least harm and of moderate.
        accuracy: difference in mean task accuracy; `equal`: it is within the tolerance.
        differences: by behavior, score under least harm − under moderate, one a seed, mean over
            stages.
    """

    ratios: tuple[float, float]
    accuracy: float
    equal: bool
    differences: dict[str, np.ndarray]

    def met(self, behavior: str) -> bool:
        """Tell if least harm keeps at least as much, in the mean over seeds."""
        return bool(self.differences[behavior].mean() >= 0)


def matches(rows: Sequence[Row], plan: Plan) -> list[Match]:
    """Compare every pair of ratios; all runs have the same number of updates."""
    given = [row for row in rows if row.order == GIVEN]
    own, other = ([r for r in given if r.method == name] for name in (LEAST_HARM, MODERATE))
    compared = []
    for one, two in product(own, other):
        gap = float(one.learned.mean() - two.learned.mean())
        differences = {n: one.scores[n].mean(1) - two.scores[n].mean(1) for n in one.scores}
        equal = abs(gap) <= plan.tolerance
        compared.append(Match((one.value, two.value), gap, equal, differences))
    return compared
