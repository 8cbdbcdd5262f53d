"""Null runs drawn again from recorded ones, and declines planted in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.detectors.plan import Plan
from riprap.detectors import BehaviorHistory, score
from riprap.monitor import ProbeSchedule

Margins = Mapping[str, np.ndarray]  # by behaviour, shape (steps + 1, n_probes)
SMOOTH = 51  # steps over which a null run's gain is averaged

Shape = Callable[[np.ndarray, int], np.ndarray]  # (steps since the onset, span) -> share of depth


def _sudden(since: np.ndarray, span: int) -> np.ndarray:
    return (since >= 0).astype(float)


def _linear(since: np.ndarray, span: int) -> np.ndarray:
    return np.clip(since / span, 0, 1)


def _exponential(since: np.ndarray, span: int) -> np.ndarray:
    return -np.expm1(-np.maximum(since, 0) / span)


def _oscillating(since: np.ndarray, span: int) -> np.ndarray:
    return np.where(since >= 0, np.sin(np.pi * since / span) ** 2, 0.0)


SHAPES: dict[str, Shape] = {
    "sudden": _sudden,
    "linear": _linear,
    "exponential": _exponential,
    "oscillating": _oscillating,
}


@dataclass(frozen=True)
class Planted:
    """A decline planted in one behaviour of a null run.

    Attributes:
        depth: as a share of the start's mean margin.
    """

    shape: str
    depth: float


@dataclass
class Drawn:
    """One resampled run.

    Attributes:
        tracks: as a monitor with forward passes alone would have known them.
        broke: first step at which the behaviour with the planted decline was under its floor.
        planted: its name; empty without one.
    """

    tracks: dict[str, BehaviorHistory]
    planted: str = ""
    broke: int | None = None


def calm_visits(plan: Plan) -> list[int]:
    """The steps at which a monitor visits that nothing alarms, the start included."""
    cadence, steps = ProbeSchedule(plan.every), [0]
    for step in range(1, plan.steps + 1):
        cadence.plan(steps[-1], [])
        if step >= cadence.due:
            steps.append(step)
    return steps


def draw(
    runs: Sequence[Margins],
    floor: float,
    plan: Plan,
    rng: np.random.Generator,
    planted: Planted | None = None,
) -> Drawn:
    """One recorded null run, each behaviour on probes drawn again with replacement.

    A planted decline lowers the margins of one behaviour, by an amount that differs from probe to
    probe; the others stay null.
    """
    run = runs[int(rng.integers(len(runs)))]
    names = list(run)
    target = names[int(rng.integers(len(names)))] if planted else ""
    visits = calm_visits(plan)
    drawn = Drawn({}, target)
    for name, recorded in run.items():
        margins = recorded[:, rng.integers(recorded.shape[1], size=recorded.shape[1])].astype(float)
        if planted and name == target:
            margins = margins - fall(margins, planted, plan, rng)
            under = [score(values) < floor for values in margins]
            drawn.broke = int(np.argmax(under)) if any(under) else None
        track = BehaviorHistory(name, floor, n_behaviors=len(names))
        for step in visits:
            track.add_margins(step, margins[step])
        drawn.tracks[name] = track
    return drawn


def levelled(run: Margins) -> Margins:
    """A null run without its slow gain: training that goes on raises margins above the start.

    A loss would hide behind the gain, and so would a false alarm: these are the harder nulls.
    """
    window = np.ones(SMOOTH) / SMOOTH
    level = {}
    for name, margins in run.items():
        means = np.pad(margins.mean(1), SMOOTH // 2, mode="edge")
        gain = np.maximum(np.convolve(means, window, "valid") - margins[0].mean(), 0)
        level[name] = margins - gain[: len(margins), None]
        level[name][0] = margins[0]  # what the start was cannot be levelled
    return level


def at_the_edge(run: Margins, tolerated: float) -> Margins:
    """The run shifted so that the mean decline of all its probes is just what is tolerated."""
    shifted = {}
    for name, margins in run.items():
        start = margins[0].mean()
        decline = (start - margins[1:].mean(1)) / start
        moved = margins[1:] - ((tolerated - decline) * start)[:, None]
        shifted[name] = np.concatenate([margins[:1], moved])
    return shifted


def fall(margins: np.ndarray, planted: Planted, plan: Plan, rng: np.random.Generator) -> np.ndarray:
    """What a planted decline takes from each margin, shape (steps + 1, n_probes)."""
    course = SHAPES[planted.shape](np.arange(len(margins)) - plan.onset, plan.span)
    each = np.exp(rng.normal(0, plan.spread, margins.shape[1]))
    return planted.depth * margins[0].mean() * course[:, None] * each / each.mean()
