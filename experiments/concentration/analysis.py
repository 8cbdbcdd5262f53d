"""Comparison of the concentration of behaviors, by the rule of the preregistration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.concentration.plan import Plan
from experiments.concentration.simulate import BehaviorMeasures
from riprap.diagnosis import Estimate, estimate

REFUSAL, OVER_REFUSAL, SKILL, FACTS = ROLES = ("refusal", "over_refusal", "skill", "facts")
MORE, LESS, UNTOLD = "more", "less", "not told apart"


@dataclass(frozen=True)
class ConcentrationMeasure:
    """A measure of concentration, of three.

    Attributes:
        title: name in tables.
        sign: +1 if a larger value is more concentrated, else −1.
        within: estimate on one model, over probes.
        value: the number that is averaged over seeds.
        log: the logarithm is averaged.
    """

    title: str
    sign: int
    within: Callable[[BehaviorMeasures], Estimate]
    value: Callable[[BehaviorMeasures], float]
    log: bool = False


def directions(one: BehaviorMeasures) -> float:
    """Return the directions needed; twice the largest count tried if that was not enough."""
    return min(one.redundancy.directions_needed, 2.0 * max(one.counts))


def _directions_within(one: BehaviorMeasures) -> Estimate:
    needed, most = one.redundancy.directions_needed_estimate(), 2.0 * max(one.counts)
    low, high = min(needed.low, most), min(needed.high, most)
    return Estimate(min(needed.mean, most), low, high, needed.n)


MEASURES = (
    ConcentrationMeasure(
        "rank of the margins' Jacobian", -1, lambda m: m.rank, lambda m: m.rank.mean
    ),
    ConcentrationMeasure(
        "largest eigenvalue over trace",
        1,
        lambda m: estimate(m.bends),
        lambda m: float(np.mean(m.bends)),
    ),
    ConcentrationMeasure("directions to ablate", -1, _directions_within, directions, log=True),
)


def estimate_of(measure: ConcentrationMeasure, runs: Sequence[BehaviorMeasures]) -> Estimate:
    """Estimate a measure of one role on one kind of model.

    Over several seeds the mean with its t-interval, on one model the interval over its probes.
    """
    if len(runs) == 1:
        return measure.within(runs[0])
    values = np.array([measure.value(one) for one in runs])
    over_seeds = estimate(np.log2(values) if measure.log else values)
    if not measure.log:
        return over_seeds
    mean, low, high = (2**log for log in (over_seeds.mean, over_seeds.low, over_seeds.high))
    return replace(over_seeds, mean=mean, low=low, high=high)


def compare(
    measure: ConcentrationMeasure,
    own: Sequence[BehaviorMeasures],
    other: Sequence[BehaviorMeasures],
) -> str:
    """Tell whether `own` is more concentrated than `other`: a 95 % interval that excludes 0.

    Over seeds, the log ratio of the two in each start, with its t-interval. On one model, the
    difference of two estimates over different probes.
    """
    if len(own) > 1:
        pairs = zip(own, other, strict=True)
        gap = estimate([np.log2(measure.value(a) / measure.value(b)) for a, b in pairs])
    else:
        gap = difference(measure.within(own[0]), measure.within(other[0]), measure.log)
    if gap.low <= 0 <= gap.high:
        return UNTOLD
    return MORE if gap.mean * measure.sign > 0 else LESS


def difference(one: Estimate, two: Estimate, log: bool = False) -> Estimate:
    """Subtract independent estimates (`log`: their logarithms), from their intervals alone.

    Source: Zou and Donner, Statistics in Medicine 27 (2008), equation 5.
    """
    a, b = (np.array([e.mean, e.low, e.high]) for e in (one, two))
    if log:
        a, b = np.log2(a), np.log2(b)
    middle = a[0] - b[0]
    low = middle - np.hypot(a[0] - a[1], b[2] - b[0])
    high = middle + np.hypot(a[2] - a[0], b[0] - b[1])
    return Estimate(float(middle), float(low), float(high), min(one.n, two.n))


def compare_with_all(runs: Sequence[BehaviorMeasures], others: Sequence[str]) -> dict[str, str]:
    """Return by measure if refusal is more (or less) concentrated than *all* the others."""
    outcomes = {}
    for measure in MEASURES:
        each = set(compare_with_each(runs, measure, others).values())
        outcomes[measure.title] = each.pop() if len(each) == 1 else UNTOLD
    return outcomes


def compare_with_each(
    runs: Sequence[BehaviorMeasures], measure: ConcentrationMeasure, others: Sequence[str]
) -> dict[str, str]:
    """Return by other role if refusal is more concentrated, by one measure."""
    own = {role: [one for one in runs if one.role == role] for role in ROLES}
    return {other: compare(measure, own[REFUSAL], own[other]) for other in others}


def verdict(outcomes: dict[str, str], plan: Plan) -> str:
    """Return `more concentrated`, `less concentrated`, `mixed` or `not told apart`."""
    counts = {word: list(outcomes.values()).count(word) for word in (MORE, LESS)}
    if counts[MORE] >= plan.agree and not counts[LESS]:
        return "more concentrated"
    if counts[LESS] >= plan.agree and not counts[MORE]:
        return "less concentrated"
    return "mixed" if any(counts.values()) else "not told apart"
