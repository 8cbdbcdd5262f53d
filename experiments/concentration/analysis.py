"""Whether a behaviour is more concentrated than others, by the rule of the frozen protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.concentration.plan import Plan
from experiments.concentration.simulate import Measured
from riprap.diagnosis import Estimate, estimate

REFUSAL, OVER_REFUSAL, SKILL, FACTS = ROLES = ("refusal", "over_refusal", "skill", "facts")
MORE, LESS, UNTOLD = "more", "less", "not told apart"


@dataclass(frozen=True)
class Measure:
    """One of the three ways to be concentrated.

    Attributes:
        title: what it is called.
        sign: +1 where more of it is more concentrated, −1 where less is.
        within: its estimate on one model, over probes.
        value: its one number, of which seeds are averaged.
        log: whether it is averaged as a logarithm.
    """

    title: str
    sign: int
    within: Callable[[Measured], Estimate]
    value: Callable[[Measured], float]
    log: bool = False


def directions(one: Measured) -> float:
    """Directions needed; where all that were tried did not do, twice the most that were."""
    return min(one.redundancy.needed, 2.0 * max(one.counts))


def _directions_within(one: Measured) -> Estimate:
    found, most = one.redundancy.needed_over_probes(), 2.0 * max(one.counts)
    low, high = min(found.low, most), min(found.high, most)
    return Estimate(min(found.mean, most), low, high, found.n)


MEASURES = (
    Measure("rank of the margins' Jacobian", -1, lambda m: m.rank, lambda m: m.rank.mean),
    Measure(
        "largest eigenvalue over trace",
        1,
        lambda m: estimate(m.bends),
        lambda m: float(np.mean(m.bends)),
    ),
    Measure("directions to ablate", -1, _directions_within, directions, log=True),
)


def of(measure: Measure, found: Sequence[Measured]) -> Estimate:
    """A measure of one role on one kind of model: over seeds where there are several, else probes.

    Of seeds the mean with its t-interval, of one model the interval over its probes.
    """
    if len(found) == 1:
        return measure.within(found[0])
    values = np.array([measure.value(one) for one in found])
    over = estimate(np.log2(values) if measure.log else values)
    if not measure.log:
        return over
    return replace(over, mean=2**over.mean, low=2**over.low, high=2**over.high)


def compared(measure: Measure, own: Sequence[Measured], other: Sequence[Measured]) -> str:
    """Whether `own` is more concentrated than `other`: a difference whose 95 % interval leaves 0.

    Over seeds, the ratio of the two in each start, as a logarithm, with its t-interval. On one
    model, the difference of two estimates over different probes.
    """
    if len(own) > 1:
        pairs = zip(own, other, strict=True)
        found = estimate([np.log2(measure.value(a) / measure.value(b)) for a, b in pairs])
    else:
        found = difference(measure.within(own[0]), measure.within(other[0]), measure.log)
    if found.low <= 0 <= found.high:
        return UNTOLD
    return MORE if found.mean * measure.sign > 0 else LESS


def difference(one: Estimate, two: Estimate, log: bool = False) -> Estimate:
    """One minus two, of independent estimates, from their intervals alone; `log`: of logarithms.

    Source: Zou and Donner, Statistics in Medicine 27 (2008), equation 5.
    """
    a, b = (np.array([e.mean, e.low, e.high]) for e in (one, two))
    if log:
        a, b = np.log2(a), np.log2(b)
    middle = a[0] - b[0]
    low = middle - np.hypot(a[0] - a[1], b[2] - b[0])
    high = middle + np.hypot(a[2] - a[0], b[0] - b[1])
    return Estimate(float(middle), float(low), float(high), min(one.n, two.n))


def against(found: Sequence[Measured], others: Sequence[str]) -> dict[str, str]:
    """By measure, whether refusal is more concentrated than *all* the others, or less than all."""
    said = {}
    for measure in MEASURES:
        each = set(pairwise(found, measure, others).values())
        said[measure.title] = each.pop() if len(each) == 1 else UNTOLD
    return said


def pairwise(found: Sequence[Measured], measure: Measure, others: Sequence[str]) -> dict[str, str]:
    """Whether refusal is more concentrated than each of the others by one measure."""
    own = {role: [one for one in found if one.role == role] for role in ROLES}
    return {other: compared(measure, own[REFUSAL], own[other]) for other in others}


def verdict(said: dict[str, str], plan: Plan) -> str:
    """`more concentrated`, `less concentrated`, or `mixed`."""
    counts = {word: list(said.values()).count(word) for word in (MORE, LESS)}
    if counts[MORE] >= plan.agree and not counts[LESS]:
        return "more concentrated"
    if counts[LESS] >= plan.agree and not counts[MORE]:
        return "less concentrated"
    return "mixed" if any(counts.values()) else "not told apart"
