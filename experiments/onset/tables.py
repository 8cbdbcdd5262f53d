"""Tables of alerts on recorded runs: policies beside trivial rules, with intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from experiments.harness import markdown
from experiments.onset.replay import Outcome, judge_by, replay
from experiments.onset.rivals import RIVALS, Statistic
from experiments.onset.trace import Trace
from riprap.detectors import AlertPolicy, BehaviorHistory
from riprap.types import Forecast, Level

RELIABILITY_BOUNDS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.01)


@dataclass
class Judged:
    """What a policy said on one behavior in one run, and what the rivals knew then.

    Attributes:
        evaluated: steps of the evaluations before the break.
        forecasts: of each of them.
        rivals: statistic of each of them, by name of the rival.
    """

    outcome: Outcome
    evaluated: list[int] = field(default_factory=list)
    forecasts: list[Forecast | None] = field(default_factory=list)
    rivals: dict[str, list[float]] = field(default_factory=dict)

    @property
    def broke(self) -> int | None:
        """First step under the floor."""
        return self.outcome.broke


def judge(
    traces: Sequence[Trace],
    policy: AlertPolicy,
    probe_every: int = 20,
    statistics: Mapping[str, Statistic] = RIVALS,
) -> list[Judged]:
    """Replay runs under a policy; the rivals are evaluated at the steps of its schedule."""
    found = []
    for trace in traces:
        own = judge_by(policy)
        seen: dict[str, Judged] = {}

        def note(
            history: BehaviorHistory,
            own: Any = own,
            seen: dict[str, Judged] = seen,
            trace: Trace = trace,
        ) -> tuple[Level | None, Forecast | None]:
            level, forecast = own(history)
            known = seen.setdefault(history.behavior, Judged(None))  # type: ignore[arg-type]
            broke = trace.break_step(history.behavior)
            if broke is None or history.step < broke:
                known.evaluated.append(history.step)
                known.forecasts.append(forecast)
                for name, statistic in statistics.items():
                    known.rivals.setdefault(name, []).append(statistic(history))
            return level, forecast

        for outcome in replay(trace, note, probe_every):
            seen[outcome.behavior].outcome = outcome
            found.append(seen[outcome.behavior])
    return found


def first_step(judged: Judged, values: Sequence[float], bound: float) -> int | None:
    """Return the first evaluation before the break at which a statistic is above a bound."""
    return next(
        (s for s, value in zip(judged.evaluated, values, strict=True) if value > bound), None
    )


def leads(
    judged: Sequence[Judged], when: Callable[[Judged], int | None]
) -> tuple[list[bool], list[float]]:
    """Return whether something was said without a break, and the leads of the breaks.

    The lead of a break that was not announced is −inf.
    """
    alarms, found = [], []
    for own in judged:
        said = when(own)
        if own.broke is None:
            alarms.append(said is not None)
        else:
            found.append(-np.inf if said is None else float(own.broke - said))
    return alarms, found


def wilson(hits: float, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson); the hits may be a sum of shares."""
    z = stats.norm.ppf(0.975)
    center = (hits + z**2 / 2) / (total + z**2)
    half = z / (total + z**2) * np.sqrt(hits * (total - hits) / total + z**2 / 4)
    return float(center - half), float(center + half)


def share(hits: float, total: int, digits: int = 3) -> str:
    """Format a share with its 95 % interval (Wilson)."""
    if not total:
        return markdown.NOTHING
    bounds = wilson(hits, total)
    texts = [f"{max(own, 0.0):.{digits}f}" for own in (hits / total, *bounds)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}] of {total}"


def row(
    name: str, level: str, alarms: Sequence[bool], found: Sequence[float], breaks: Sequence[int]
) -> dict[str, str]:
    """Return one line of the table of alerts."""
    got = np.array(found)
    said = got >= 1
    shares = got[said] / np.array(breaks)[said]
    return {
        "rule": name,
        "level": level,
        "said without a break": share(sum(alarms), len(alarms)),
        "breaks among those said before": share(int(said.sum()), int(said.sum()) + sum(alarms)),
        "≥ 1 step before": share(int(said.sum()), len(got)),
        "≥ 5 steps before": share(int((got >= 5).sum()), len(got)),
        "median lead": markdown.number(np.median(np.where(said, got, 0)) if len(got) else None),
        "of the time to the break": markdown.number(np.median(shares) if len(shares) else None, 2),
    }


def table(name: str, judged: Sequence[Judged], with_rivals: bool = True) -> list[dict[str, str]]:
    """Return the lines of one policy, and of the rivals at its rate of false alarms."""
    breaks = [own.broke for own in judged if own.broke is not None]
    rows = []
    for level in (Level.WARNING, Level.CRITICAL):

        def said(own: Judged, level: Level = level) -> int | None:
            return own.outcome.first.get(level)

        alarms, found = leads(judged, said)
        rows.append(row(name, str(level), alarms, found, breaks))
        for rival in RIVALS if with_rivals else ():
            bound = rival_bound(judged, rival, sum(alarms))
            got = leads(judged, lambda own: first_step(own, own.rivals[rival], bound))  # noqa: B023
            rows.append(row(rival, f"as often as {level}", *got, breaks))
    return rows


def rival_bound(judged: Sequence[Judged], rival: str, allowed: int) -> float:
    """Return the smallest bound of a rival that is passed in at most so many runs without a
    break."""
    largest = sorted((max(own.rivals[rival]) for own in judged if own.broke is None), reverse=True)
    return largest[allowed] if allowed < len(largest) else -np.inf


def reliability_rows(judged: Sequence[Judged]) -> list[dict[str, str]]:
    """Return how often a break came within the horizon, by the probability that was forecast."""
    said: list[tuple[float, bool]] = []
    for own in judged:
        for step, forecast in zip(own.evaluated, own.forecasts, strict=True):
            if forecast is not None and forecast.probability is not None:
                came = own.broke is not None and own.broke <= step + forecast.horizon
                said.append((forecast.probability, came))
    rows = []
    for low, high in itertools.pairwise(RELIABILITY_BOUNDS):
        part = [(share, came) for share, came in said if low <= share < high]
        if part:
            mean = float(np.mean([share for share, _ in part]))
            rows.append(
                {
                    "forecasts": str(len(part)),
                    "probability of a break": markdown.number(mean, 3),
                    "a break came": f"{np.mean([came for _, came in part]):.3f}",
                }
            )
    return rows
