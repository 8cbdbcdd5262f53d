"""Law of the pace to come: what the first steps of a run say of a break in the rest of it.

A recorded run stands in for the copy of `riprap preflight`: it follows its own schedule until the
sum of its rates is that of the copy's 16 steps. `choose` finds the law on exploratory runs by the
rule in `experiments/preregistrations/preflight.yaml`; `rules_table` judges the law that the library
has, beside trivial rules, on any runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from experiments.harness import markdown
from experiments.harness.preregistration import Preregistration
from experiments.harness.ranks import roc_area
from experiments.onset.tables import share
from experiments.onset.trace import Trace
from riprap.detectors import fitted_trends, threshold_margin
from riprap.prediction import Course, measured_slopes, time_to_floor

# Sums of the rates at the last three of the copy's four evaluations: its rate rises in four steps.
EVALUATED = np.array([6.5, 10.5, 14.5])
CLIP = 0.01  # probabilities nearer to 0 or 1 count as this, so that no single run decides
REPLICATES = 2000
BEFORE = {"own": 0.5, "exponent": 1.0, "pace": 1.0, "doubt": 0.9}  # the law until this choice


@dataclass(frozen=True)
class Case:
    """One behavior in one run, as preflight would know it, and what came.

    Attributes:
        start: margins before training, shape (n_probes,).
        margins: at three evaluations of the first steps, shape (3, n_probes).
        sums: of the rates, at these evaluations.
        broke: sum of the rates at the break; NaN: it did not break.
        seen: the behavior broke within the first steps.
        switched: the run later trains on other data, of which its first steps know nothing.
    """

    trace: Trace
    behavior: str
    start: np.ndarray
    margins: np.ndarray
    sums: np.ndarray
    broke: float
    seen: bool
    switched: bool

    @property
    def floor(self) -> float:
        """Score under which the behavior is broken."""
        return self.trace.behaviors[self.behavior].floor

    @property
    def world(self) -> str:
        """World of the run: its corpus, where that has only one."""
        return str(self.trace.about.get("world", self.trace.corpus))

    @property
    def done(self) -> float:
        """Sum of the rates of the first steps."""
        return float(self.sums[-1])

    @property
    def left(self) -> float:
        """Sum of the rates of the rest."""
        return float(self.trace.rates.sum()) - self.done

    def course(self) -> Course:
        """Return what the library makes of the first steps."""
        own, steps = self.trace.behaviors[self.behavior], self.trace.steps
        slopes = measured_slopes(self.sums.tolist(), list(self.margins))
        rates = self.trace.rates
        seen = None
        if self.seen:
            sums = np.concatenate([[0.0], np.cumsum(rates)])[steps]
            first = int(np.flatnonzero(own.scores() < own.floor)[0])
            seen = (float(sums[first - 1]), float(sums[first]))
        return Course(self.margins[-1], slopes, own.floor, rates, self.done, seen)


def cases(traces: Sequence[Trace]) -> list[Case]:
    """Return the behaviors that start healthy in some runs."""
    found = []
    for trace in traces:
        sums = np.concatenate([[0.0], np.cumsum(trace.rates)])[trace.steps]
        half = sums[trace.steps <= trace.n_steps // 2][-1]  # the copy takes at most half the steps
        at = np.searchsorted(sums, EVALUATED * min(1.0, half / EVALUATED[-1]) - 1e-9)
        about = trace.about
        switch = about.get("change", about.get("switch"))
        for name, own in trace.behaviors.items():
            if trace.starts_broken(name):
                continue
            step = trace.break_step(name)
            broke = math.nan if step is None else float(sums[trace.steps == step][0])
            found.append(
                Case(
                    trace,
                    name,
                    own.margins[0],
                    own.margins[at],
                    sums[at],
                    broke,
                    seen=step is not None and step <= trace.steps[at[-1]],
                    switched=switch is not None and switch < trace.n_steps,
                )
            )
    return found


def to_predict(found: Sequence[Case]) -> list[Case]:
    """Return the cases that a law is judged on: not broken yet, and the data stay the same."""
    return [case for case in found if not case.seen and not case.switched]


# -- The choice on exploratory runs


def effective(left: np.ndarray, done: np.ndarray, exponent: float) -> np.ndarray:
    """Return how far margins go at a pace that falls as the sum of rates to (exponent − 1)."""
    if exponent == 0:
        return done * np.log1p(left / done)
    found: np.ndarray = done / exponent * ((1 + left / done) ** exponent - 1)
    return found


def line_times(found: Sequence[Case], own: float) -> np.ndarray:
    """Return the sum of rates in which each behavior breaks along its lines."""
    return np.array(
        [
            time_to_floor(case.margins[-1], fitted_trends(case.sums, case.margins, own), case.floor)
            for case in found
        ]
    )


def break_probability(
    found: Sequence[Case], times: np.ndarray, exponent: float, pace: float, doubt: float
) -> np.ndarray:
    """Return the probability of a break in the rest of each run.

    Args:
        times: see `line_times`.
        exponent: see `effective`; 1: margins keep their pace.
        pace: median of the pace to come over the measured one.
        doubt: standard deviation of its logarithm.
    """
    left, done = (np.array([getattr(case, name) for case in found]) for name in ("left", "done"))
    with np.errstate(divide="ignore"):
        return norm.cdf(np.log(pace * effective(left, done, exponent) / times) / doubt)


def log_losses(found: Sequence[Case], probabilities: np.ndarray) -> np.ndarray:
    """Return the log loss of each case."""
    kept = np.clip(probabilities, CLIP, 1 - CLIP)
    return -np.log(np.where(_broke(found), kept, 1 - kept))


def mean_by_world(found: Sequence[Case], values: np.ndarray) -> float:
    """Return the mean over worlds of the mean of each world."""
    worlds = np.array([case.world for case in found])
    return float(np.mean([values[worlds == world].mean() for world in np.unique(worlds)]))


def choose(found: Sequence[Case], grid: dict[str, list[float]], within: float) -> dict[str, Any]:
    """Return the setting that the preregistered rule takes, and its facts.

    Of all settings the log loss within `within` of the lowest; of these, those with lines if there
    are any; of these the most breaks within a factor of two of the median; then the lowest loss.
    """
    rows = []
    for own in grid["own"]:
        times = line_times(found, own)
        for exponent, pace, doubt in product(grid["exponent"], grid["pace"], grid["doubt"]):
            chances = break_probability(found, times, exponent, pace, doubt)
            loss = mean_by_world(found, log_losses(found, chances))
            row = {"own": own, "exponent": exponent, "pace": pace, "doubt": doubt, "loss": loss}
            if exponent == 1:
                with np.errstate(invalid="ignore"):
                    medians = times / pace * np.exp(doubt * norm.ppf(chances / 2))
                row["near"] = float(near(found, medians).sum())
            rows.append(row)
    lowest = min(row["loss"] for row in rows)
    good = [row for row in rows if row["loss"] <= lowest + within]
    lines = [row for row in good if row["exponent"] == 1]
    best = max(lines or good, key=lambda row: (round(row.get("near", 0.0), 6), -row["loss"]))
    return best | {"lowest loss": lowest, "settings": len(rows)}


def near(found: Sequence[Case], medians: np.ndarray) -> np.ndarray:
    """Return which breaks came within a factor of two of a time after the first steps."""
    return np.abs(np.log(_ratios(found, medians))) <= math.log(2)


def _ratios(found: Sequence[Case], medians: np.ndarray) -> np.ndarray:
    """Return the forecast over the true sum of rates until each break, from step 0."""
    broke, done = (np.array([getattr(case, key) for case in found]) for key in ("broke", "done"))
    ratios = ((done + medians) / broke)[_broke(found)]
    return np.where(np.isfinite(ratios), ratios, np.inf)


def _broke(found: Sequence[Case]) -> np.ndarray:
    return np.array([not math.isnan(case.broke) for case in found])


# -- Trivial rules


def _log_left(case: Case) -> float:
    return math.log(max(case.left, 1e-9) / case.done)


def _lost_threshold(case: Case) -> float:
    lows = [threshold_margin(margins, case.floor) for margins in (case.start, case.margins[-1])]
    return float(np.clip(1 - lows[1] / max(lows[0], 1e-9), -1, 1))


def _lost_mean(case: Case) -> float:
    return float(np.clip(1 - case.margins[-1].mean() / case.start.mean(), -1, 1))


STATISTICS: dict[str, Callable[[Case], float]] = {
    "base rate": lambda case: 0.0,
    "summed rate to come": _log_left,
    "lost threshold margin": _lost_threshold,
    "lost mean margin": _lost_mean,
}


def fit_rivals(found: Sequence[Case]) -> dict[str, list[float]]:
    """Fit intercept and slope of a logistic curve of each statistic; each world counts the same."""
    broke = _broke(found)
    fitted = {}
    for name, statistic in STATISTICS.items():
        values = np.array([statistic(case) for case in found])

        def loss(line: np.ndarray, values: np.ndarray = values) -> float:
            signs = np.where(broke, -1.0, 1.0) * (line[0] + line[1] * values)
            return mean_by_world(found, np.logaddexp(0, signs)) + 1e-6 * line[1] ** 2

        fitted[name] = [round(float(one), 3) for one in minimize(loss, np.zeros(2)).x]
    return fitted


def _rival(found: Sequence[Case], name: str, line: Sequence[float]) -> np.ndarray:
    values = np.array([STATISTICS[name](case) for case in found])
    return 1 / (1 + np.exp(-(line[0] + line[1] * values)))


# -- Tables


def rules(found: Sequence[Case], terms: Preregistration) -> dict[str, np.ndarray]:
    """Return the probability of a break in each case, by rule; the library's law is the first."""
    assert terms.study is not None
    chances = {"law": np.array([case.course().forecast()[1] for case in found])}
    before = {key: BEFORE[key] for key in ("exponent", "pace", "doubt")}
    chances["line as before"] = break_probability(found, line_times(found, BEFORE["own"]), **before)
    for name, line in terms.study["rivals"].items():
        chances[name] = _rival(found, name, line)
    return chances | {"never breaks": np.zeros(len(found))}


def rules_table(found: Sequence[Case], terms: Preregistration) -> list[dict[str, str]]:
    """Return what each rule says of a break in the rest of the runs."""
    broke = _broke(found)
    chances = rules(found, terms)
    rows = []
    for name, own in chances.items():
        said = own > 0.5
        losses = log_losses(found, own)
        difference = "" if name == "law" else _difference(found, losses, chances["law"])
        rows.append(
            {
                "rule": name,
                "breaks that it says": share(int((said & broke).sum()), int(broke.sum())),
                "said without a break": share(int((said & ~broke).sum()), int((~broke).sum())),
                "log loss by world": markdown.number(mean_by_world(found, losses), 3),
                "more than the law's": difference,
                "area under the curve": markdown.number(_area(found, own), 3),
            }
        )
    return rows


def _difference(found: Sequence[Case], losses: np.ndarray, law: np.ndarray) -> str:
    """Return how much more a rule loses than the law, with the 95 % interval over runs."""
    gaps = losses - log_losses(found, law)
    names = np.array([case.trace.name for case in found])
    by_run = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.default_rng(0)
    means = []
    for _ in range(REPLICATES):
        drawn = np.concatenate([by_run[at] for at in rng.integers(len(by_run), size=len(by_run))])
        means.append(mean_by_world([found[at] for at in drawn], gaps[drawn]))
    low, high = np.quantile(means, (0.025, 0.975))
    texts = [markdown.number(one, 3) for one in (mean_by_world(found, gaps), low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _area(found: Sequence[Case], scores: np.ndarray) -> float:
    """Return the area under the curve within worlds, averaged over the worlds that have one."""
    worlds, broke = np.array([case.world for case in found]), _broke(found)
    areas = []
    for world in np.unique(worlds):
        at = worlds == world
        hits, misses = scores[at & broke], scores[at & ~broke]
        if len(hits) and len(misses):
            areas.append(float(roc_area(hits, misses)))
    return float(np.mean(areas)) if areas else math.nan


def times_table(found: Sequence[Case]) -> list[dict[str, str]]:
    """Return how near the forecast times are where a break came."""
    kept = [case for case in found if not math.isnan(case.broke)]
    if not kept:
        return []
    done = np.array([case.done for case in kept])
    left = np.array([case.left for case in kept])
    forecasts = [case.course().times_of((0.1, 0.5, 0.9)) for case in kept]
    low, median, high = np.array(forecasts).T
    broke = np.array([case.broke for case in kept]) - done
    line = np.minimum(line_times(kept, BEFORE["own"]), left)
    rows = []
    for name, own in (("law", median), ("line as before", line), ("middle of the rest", left / 2)):
        ratios = _ratios(kept, own)
        inside = int(((low <= broke + 1e-9) & (broke <= high + 1e-9)).sum())
        rows.append(
            {
                "rule": name,
                "break within a factor of two": share(int(near(kept, own).sum()), len(kept)),
                "median error, as a factor": markdown.number(
                    np.exp(np.median(np.abs(np.log(ratios)))), 2
                ),
                "break in the 80 % interval": share(inside, len(kept)) if name == "law" else "",
            }
        )
    return rows
