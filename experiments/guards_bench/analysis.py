"""From runs to rows: what was kept and learned, and what it cost."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from experiments.guards_bench.methods import AUTO, METHODS, MIXING, NONE
from experiments.guards_bench.plan import Plan
from experiments.guards_bench.simulate import Look, Run
from experiments.transfer.pareto_front import hypervolume

WORK, TIME = "work", "time"  # what is equal where methods are compared


@dataclass(frozen=True)
class Point:
    """One run at one moment: the worst and the mean old score, and the share learned.

    Attributes:
        new: accuracy on the new task, as a share of the plain run's at its end.
    """

    worst: float
    mean: float
    new: float

    @property
    def area(self) -> float:
        """Hypervolume of the point, with reference point (0, 0)."""
        return hypervolume([(self.worst, self.new)])


@dataclass(frozen=True)
class Row:
    """A method at a value on a ground; lists have one entry a seed.

    Attributes:
        end: at the end of the run.
        at_work, at_time: at the plan's budget of work and of processor time, or at the end before.
        time: processor time, as a share of the plain run's.
        runs: the runs themselves.
        failed: the errors of runs that failed.
        below: in what it is behind the plain run beyond noise: `worst`, `mean`, `new`.
    """

    ground: str
    method: str
    value: float
    runs: list[Run]
    end: list[Point] = field(default_factory=list)
    at_work: list[Point] = field(default_factory=list)
    at_time: list[Point] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)

    @property
    def is_default(self) -> bool:
        """True if the knob is at its default."""
        return self.value == METHODS[self.method].values[0]

    @property
    def label(self) -> str:
        """The method, with its value where it is not the default."""
        return self.method if self.is_default else f"{self.method} ({self.value:g})"

    @property
    def seeds(self) -> set[int]:
        """Seeds of the runs."""
        return {run.seed for run in self.runs}

    def area(self, at: str = WORK, seeds: Collection[int] | None = None) -> float:
        """Mean hypervolume at equal work, or at equal time; 0 where each run failed.

        Args:
            at: `WORK` or `TIME`.
            seeds: the seeds that count; None: all.
        """
        points = zip(self.runs, self.at_work if at == WORK else self.at_time, strict=True)
        areas = [p.area for run, p in points if seeds is None or run.seed in seeds]
        return float(np.mean(areas)) if areas else 0.0


def rows(runs: Iterable[Run], plan: Plan) -> list[Row]:
    """Return a row for each ground, method and value, in the order of the table of methods."""
    plain: dict[tuple[str, int], Run] = {}
    by_key: dict[tuple[str, str, float], list[Run]] = {}
    for run in runs:
        if run.method in METHODS and run.value in METHODS[run.method].values:
            by_key.setdefault((run.ground, run.method, run.value), []).append(run)
        if run.method == NONE:
            plain[run.ground, run.seed] = run
    order = list(METHODS)
    keys = sorted(by_key, key=lambda key: (key[0], order.index(key[1])))
    return [_row(key, by_key[key], plain, plan) for key in keys]


def _row(
    key: tuple[str, str, float],
    runs: list[Run],
    plain: Mapping[tuple[str, int], Run],
    plan: Plan,
) -> Row:
    good = [run for run in runs if not run.failed and (run.ground, run.seed) in plain]
    bases = [plain[run.ground, run.seed] for run in good]
    pairs = list(zip(good, bases, strict=True))
    end = [_point(run.looks[-1], base) for run, base in pairs]
    return Row(
        *key,
        runs=good,
        end=end,
        at_work=[_point(look_at(run.looks, work=plan.budget), base) for run, base in pairs],
        at_time=[
            _point(look_at(run.looks, seconds=plan.budget * base.seconds), base)
            for run, base in pairs
        ],
        time=[run.seconds / base.seconds for run, base in pairs],
        failed=[run.failed for run in runs if run.failed],
        below=harm(end, [_point(base.looks[-1], base) for base in bases], plan),
    )


def _point(look: Look, plain: Run) -> Point:
    old = list(look.old.values())
    return Point(min(old), float(np.mean(old)), look.new / max(plain.looks[-1].new, 1e-9))


def look_at(
    looks: Sequence[Look], work: float = float("inf"), seconds: float = float("inf")
) -> Look:
    """Return the last look within a budget."""
    return [look for look in looks if look.work <= work and look.seconds <= seconds][-1]


def harm(end: Sequence[Point], plain: Sequence[Point], plan: Plan) -> list[str]:
    """Return which of worst old, mean old and new score are below the plain run's, beyond noise."""
    found = []
    for name in ("worst", "mean", "new"):
        gaps = [getattr(a, name) - getattr(b, name) for a, b in zip(end, plain, strict=True)]
        noise = plan.few if len(gaps) < 3 else max(plan.noise, half_width(gaps))
        if gaps and np.mean(gaps) < -noise:
            found.append(name)
    return found


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean, by Student's t; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def fronts(own: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return the hypervolume of all values of a method together, by ground and method.

    It is the mean over the seeds that every value has; at equal work.
    """
    found = {}
    for ground, method in dict.fromkeys((row.ground, row.method) for row in own):
        values = [row for row in own if (row.ground, row.method) == (ground, method)]
        by_seed = [
            {run.seed: point for run, point in zip(row.runs, row.at_work, strict=True)}
            for row in values
        ]
        seeds = set.intersection(*map(set, by_seed))
        if seeds:
            areas = [hypervolume((p[s].worst, p[s].new) for p in by_seed) for s in seeds]
            found[ground, method] = float(np.mean(areas))
    return found


@dataclass(frozen=True)
class Standing:
    """AutoGuard at its default on one ground, against the other methods at their defaults.

    Attributes:
        rank: by hypervolume at equal work, 1 for the best; of `others` + 1.
        ahead: the methods with a larger one, best first.
        over: whether it is larger than each share of mixing.
        learned: share of the new task.
        reason: why less was learned, or a floor was not held, as the run says.
    """

    ground: str
    area: float
    rank: int
    others: int
    ahead: list[str]
    over: dict[str, bool]
    learned: float
    reason: str


def standings(own: Sequence[Row], at: str = WORK) -> list[Standing]:
    """Return where AutoGuard stands on each ground that it ran on.

    It is compared with each method on the seeds that both ran.

    Args:
        at: `WORK` or `TIME`: what is equal.
    """
    found = []
    for ground in dict.fromkeys(row.ground for row in own):
        rivals = {r.method: r for r in own if r.ground == ground and r.is_default and r.end}
        auto = rivals.pop(AUTO, None)
        if auto is None:
            continue
        ahead = [row for row in rivals.values() if _is_above(row, auto, at)]
        reached = float(np.mean([point.new for point in auto.end]))
        told = dict.fromkeys(text for run in auto.runs for text in [*run.reasons, run.stopped])
        found.append(
            Standing(
                ground=ground,
                area=auto.area(at),
                rank=len(ahead) + 1,
                others=len(rivals),
                ahead=[row.method for row in sorted(ahead, key=Row.area, reverse=True)],
                over={m: _is_above(auto, rivals[m], at) for m in MIXING if m in rivals},
                learned=reached,
                reason="; ".join(filter(None, told)),
            )
        )
    return found


def _is_above(one: Row, other: Row, at: str) -> bool:
    shared = one.seeds & other.seeds
    return one.area(at, shared) > other.area(at, shared)


def searched_grounds(own: Sequence[Row], method: str) -> list[str]:
    """Return the grounds on which each value of a method's knob was tried."""
    tried: dict[str, set[float]] = {}
    for row in own:
        if row.method == method:
            tried.setdefault(row.ground, set()).add(row.value)
    return [ground for ground, found in tried.items() if found >= set(METHODS[method].values)]


def best_values(own: Sequence[Row]) -> dict[str, float]:
    """Return each method's value with the largest mean hypervolume over grounds.

    Only grounds count where each value was tried; at a tie the default stays.
    """
    best = {}
    for method in dict.fromkeys(row.method for row in own):
        areas = {(r.ground, r.value): r.area() for r in own if r.method == method}
        values, grounds = METHODS[method].values, searched_grounds(own, method)
        if grounds and len(values) > 1:
            best[method] = max(
                values, key=lambda value: float(np.mean([areas[g, value] for g in grounds]))
            )
    return best
