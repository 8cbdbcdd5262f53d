"""Conclusions from the runs: distances and updates at equal reward, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from experiments.fast_slow.measure import Look
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.simulate import Run
from riprap.diagnosis import Estimate, Verdict, estimate

FIRST, SECOND, PROXY = "first", "second", "proxy"
Read = Callable[[Look], float]
CONTROLS = ("frozen", "random")
MEASURES: dict[str, Read] = {
    "rollouts": lambda look: float(look.rollouts),
    "updates": lambda look: float(look.update),
    "KL": lambda look: look.kl,
    "KL, no instruction": lambda look: look.kl_plain,
    "KL, old prompts": lambda look: look.kl_old,
    "entropy": lambda look: look.entropy,
    "old score": lambda look: old_score(look),
}


def old_score(look: Look) -> float:
    """Return the mean score of the old behaviors."""
    return sum(look.scores.values()) / len(look.scores)


def of_task(run: Run, task: str = FIRST) -> list[Look]:
    """Return the looks of a run at one task."""
    return [look for look in run.looks if look.task == task]


def at_reward(looks: Sequence[Look], target: float, read: Read) -> float:
    """Return a measure where the mean reward first reaches a target, on a line between two looks.

    NaN if it never does.
    """
    if not looks:
        return math.nan
    if looks[0].reward >= target:
        return read(looks[0])
    for before, after in pairwise(looks):
        if after.reward >= target:
            part = (target - before.reward) / (after.reward - before.reward)
            return read(before) + part * (read(after) - read(before))
    return math.nan


def at_update(looks: Sequence[Look], update: float, read: Read) -> float:
    """Return a measure after a number of updates, on a line between two looks; NaN outside."""
    for before, after in pairwise(looks):
        if before.update <= update <= after.update and after.update > before.update:
            part = (update - before.update) / (after.update - before.update)
            return read(before) + part * (read(after) - read(before))
    return math.nan


def by_arm(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Return the runs by arm and seed."""
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        found.setdefault(run.arm, {})[run.seed] = run
    return found


def paired(
    runs: Sequence[Run], one: str, other: str, read: Callable[[Run], float]
) -> list[tuple[float, float]]:
    """Return a number of two arms on the same seeds, where both have it."""
    arms = by_arm(runs)
    first, second = arms.get(one, {}), arms.get(other, {})
    pairs = [(read(first[seed]), read(second[seed])) for seed in sorted(set(first) & set(second))]
    return [pair for pair in pairs if not any(map(math.isnan, pair))]


def ratio(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """Return the geometric mean of the ratios, with its interval; None without a pair."""
    logs = [math.log(max(one, 1e-9) / max(other, 1e-9)) for one, other in pairs]
    if not logs:
        return None
    found = estimate(logs)
    low, mean, high = (math.exp(own) for own in (found.low, found.mean, found.high))
    return Estimate(mean, low, high, found.n)


def difference(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """Return the mean difference, with its interval; None without a pair."""
    return estimate([one - other for one, other in pairs]) if pairs else None


def ratio_at(
    runs: Sequence[Run], one: str, other: str, target: float, measure: str, task: str = FIRST
) -> Estimate | None:
    """Return the ratio of a measure of two arms where each first reaches a reward."""
    read = MEASURES[measure]
    return ratio(paired(runs, one, other, lambda r: at_reward(of_task(r, task), target, read)))


def difference_at(
    runs: Sequence[Run], one: str, other: str, target: float, measure: str
) -> Estimate | None:
    """Return the difference of a measure of two arms where each first reaches a reward."""
    read = MEASURES[measure]
    return difference(paired(runs, one, other, lambda r: at_reward(of_task(r), target, read)))


def gain_on_both(run: Run) -> float:
    """Return the reward on the part `both` at the end of the first task."""
    return of_task(run)[-1].rewards["both"]


def fewer_updates(runs: Sequence[Run]) -> Estimate | None:
    """Return old score of `both` minus that of `slow` after as many updates of the weights."""
    arms, values = by_arm(runs), []
    for seed, run in arms.get("both", {}).items():
        slow = arms.get("slow", {}).get(seed)
        end = of_task(run)[-1]
        if slow is not None:
            values.append((old_score(end), at_update(of_task(slow), end.update, old_score)))
    return difference([pair for pair in values if not math.isnan(pair[1])])


def spurious(run: Run) -> float:
    """Return the number of old behaviors whose loss after any task is an alignment loss."""
    lost = [verdict for stage in run.stages for verdict in stage.lost.values()]
    return float(lost.count(str(Verdict.ALIGNMENT)))


def claims(runs: Sequence[Run], plan: Plan) -> dict[str, str]:
    """Return the verdict on each claim; see the rules of the plan."""
    target, least = plan.target, plan.least
    kl = ratio_at(runs, "both", "slow", target, "KL")
    steps = ratio_at(runs, "both", "slow", target, "rollouts")
    adds = [difference(paired(runs, "both", other, gain_on_both)) for other in ("slow", "fast")]
    old = difference_at(runs, "both", "slow", target, "old score")
    controls = [difference_at(runs, "both", own, target, "old score") for own in CONTROLS]
    lost = difference(paired(runs, "both", "slow", spurious))
    second = ratio(
        paired(
            runs, "both_long", "slow_long",
            lambda r: at_reward(of_task(r, SECOND), target, MEASURES["rollouts"]),
        )
    )  # fmt: skip
    guard = difference_at(runs, "both", "guarded", target, "old score")
    return {
        "less KL at equal reward": _side(kl, 1.0, "less", "more"),
        "fewer rollouts to a reward": _side(steps, 1.0, "fewer", "more"),
        "both add up": _all(adds, least),
        "old behaviors at equal reward": _side(old, 0.0, "lower", "higher"),
        "text, not fewer updates": _all([fewer_updates(runs), *controls], 0.0),
        "less spurious forgetting": _side(lost, 0.0, "less", "more"),
        "plasticity after a long task": _side(second, 1.0, "fewer rollouts", "more rollouts"),
        "against AutoGuard": _side(guard, 0.0, "lower", "higher"),
    }


def _side(found: Estimate | None, middle: float, below: str, above: str) -> str:
    if found is None or found.n < 3:
        return "cannot be told: a reward was not reached on three seeds"
    if found.high < middle:
        return below
    return above if found.low > middle else "cannot be told"


def _all(found: Sequence[Estimate | None], least: float) -> str:
    if any(own is None or own.n < 3 for own in found):
        return "cannot be told: a reward was not reached on three seeds"
    known = [own for own in found if own is not None]
    if all(own.low > least for own in known):
        return "yes"
    return "no" if any(own.high < least for own in known) else "cannot be told"
