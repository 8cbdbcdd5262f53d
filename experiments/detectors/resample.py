"""Null runs resampled from recorded ones, and declines planted in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.detectors.plan import Plan
from riprap.detectors import BehaviorHistory, score
from riprap.monitor import ProbeSchedule

Margins = Mapping[str, np.ndarray]  # by behavior, shape (steps + 1, n_probes)
SMOOTH = 51  # steps over which the gain of a null run is averaged

Shape = Callable[[np.ndarray, int], np.ndarray]  # (steps since the onset, span) -> share of depth


SHAPES: dict[str, Shape] = {
    "sudden": lambda since, _: (since >= 0).astype(float),
    "linear": lambda since, span: np.clip(since / span, 0, 1),
    "exponential": lambda since, span: -np.expm1(-np.maximum(since, 0) / span),
    "oscillating": lambda since, span: np.where(since >= 0, np.sin(np.pi * since / span) ** 2, 0.0),
}


@dataclass(frozen=True)
class PlantedDecline:
    """A decline planted in one behavior of a null run.

    Attributes:
        depth: as a share of the start's mean margin.
    """

    shape: str
    depth: float


@dataclass
class ResampledRun:
    """A resampled run.

    Attributes:
        histories: those of a monitor that uses only forward passes.
        broke: first step with the behavior of the planted decline below its floor.
        planted: name of that behavior; empty without one.
    """

    histories: dict[str, BehaviorHistory]
    planted: str = ""
    broke: int | None = None


def calm_schedule(plan: Plan) -> list[int]:
    """Return the steps of a monitor's probe evaluations without any alert, from step 0."""
    schedule, steps = ProbeSchedule(plan.every), [0]
    for step in range(1, plan.steps + 1):
        schedule.plan(steps[-1], [])
        if step >= schedule.next_step:
            steps.append(step)
    return steps


def draw(
    runs: Sequence[Margins],
    floor: float,
    plan: Plan,
    rng: np.random.Generator,
    planted: PlantedDecline | None = None,
) -> ResampledRun:
    """Draw one recorded null run, each behavior on probes drawn with replacement.

    A planted decline lowers the margins of one behavior, by an amount that differs between
    probes; the other behaviors do not change.
    """
    run = runs[int(rng.integers(len(runs)))]
    names = list(run)
    target = names[int(rng.integers(len(names)))] if planted else ""
    steps = calm_schedule(plan)
    resampled = ResampledRun({}, target)
    for name, recorded in run.items():
        margins = recorded[:, rng.integers(recorded.shape[1], size=recorded.shape[1])].astype(float)
        if planted and name == target:
            margins = margins - fall(margins, planted, plan, rng)
            under = [score(values) < floor for values in margins]
            resampled.broke = int(np.argmax(under)) if any(under) else None
        history = BehaviorHistory(name, floor, n_behaviors=len(names))
        for step in steps:
            history.add_margins(step, margins[step])
        resampled.histories[name] = history
    return resampled


def leveled(run: Margins) -> Margins:
    """Remove the slow gain of a null run, by which continued training raises margins.

    The gain would hide losses and false alarms, so these null runs are harder.
    """
    window = np.ones(SMOOTH) / SMOOTH
    level = {}
    for name, margins in run.items():
        means = np.pad(margins.mean(1), SMOOTH // 2, mode="edge")
        gain = np.maximum(np.convolve(means, window, "valid") - margins[0].mean(), 0)
        level[name] = margins - gain[: len(margins), None]
        level[name][0] = margins[0]  # the start stays as it was
    return level


def at_the_edge(run: Margins, tolerated: float) -> Margins:
    """Shift a run so that the mean decline of its probes is just tolerated."""
    shifted = {}
    for name, margins in run.items():
        start = margins[0].mean()
        decline = (start - margins[1:].mean(1)) / start
        moved = margins[1:] - ((tolerated - decline) * start)[:, None]
        shifted[name] = np.concatenate([margins[:1], moved])
    return shifted


def fall(
    margins: np.ndarray, planted: PlantedDecline, plan: Plan, rng: np.random.Generator
) -> np.ndarray:
    """Return the loss of each margin to a planted decline, shape (steps + 1, n_probes)."""
    course = SHAPES[planted.shape](np.arange(len(margins)) - plan.onset, plan.span)
    each = np.exp(rng.normal(0, plan.spread, margins.shape[1]))
    return planted.depth * margins[0].mean() * course[:, None] * each / each.mean()
