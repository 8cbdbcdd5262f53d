"""Conclusions from the runs: measures at equal reward, and comparisons paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from experiments.fast_slow.measure import Measurement, mean
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.premise import NEEDS_BOTH
from experiments.fast_slow.simulate import Run
from riprap.diagnosis import Estimate, Verdict, estimate

FIRST, SECOND, PROXY = "first", "second", "proxy"
ALIGNMENT = str(Verdict.ALIGNMENT)
LEAST_SEEDS = 3  # that can decide
Read = Callable[[Measurement], float]
OfRun = Callable[[Run], float]


def old_score(own: Measurement) -> float:
    """Return the mean score of the old behaviors."""
    return mean(list(own.scores.values()))


MEASURES: dict[str, Read] = {
    "rollouts": lambda own: float(own.rollouts),
    "updates": lambda own: float(own.update),
    "KL": lambda own: own.kl,
    "KL, no instruction": lambda own: own.kl_plain,
    "KL, as used": lambda own: own.kl_total,
    "KL, old prompts": lambda own: own.kl_old,
    "entropy": lambda own: own.entropy,
    "old score": old_score,
    "old margin": lambda own: mean(list(own.margins.values())),
    "old score, as used": lambda own: mean(list(own.used_scores.values())),
    "old margin, as used": lambda own: mean(list(own.used_margins.values())),
}
KLS = tuple(name for name in MEASURES if name.startswith("KL"))
COUNTS = ("rollouts", "updates")


@dataclass(frozen=True)
class Reach:
    """Rule by which a reward counts as reached.

    Attributes:
        reward: which reward.
        for_good: after the last time that it was under the target; else at the first crossing.
    """

    reward: Read = lambda own: own.reward
    for_good: bool = False


RULE = Reach()
BY_WEIGHTS = Reach(lambda own: own.best["meaning"])
"""No text teaches a meaning. With the best instruction, because a bad one can spoil the format."""
READINGS = {
    "first crossing (the rule)": RULE,
    "for good": Reach(for_good=True),
    "reward of `meaning`, which no text teaches": BY_WEIGHTS,
}


def of_task(run: Run, task: str = FIRST) -> list[Measurement]:
    """Return the measurements of a run at one task."""
    return [own for own in run.measured if own.task == task]


def at_reward(
    measured: Sequence[Measurement], target: float, read: Read, reach: Reach = RULE
) -> float:
    """Return a measure where a reward reaches a target, on a line between two measurements.

    NaN if it never does, and if it was there from the start: then no training reached it.
    """
    crossed = [
        (before, after)
        for before, after in pairwise(measured)
        if reach.reward(before) < target <= reach.reward(after)
    ]
    if not crossed or (not reach.for_good and reach.reward(measured[0]) >= target):
        return math.nan
    if reach.for_good and reach.reward(measured[-1]) < target:
        return math.nan
    before, after = crossed[-1 if reach.for_good else 0]
    low, high = reach.reward(before), reach.reward(after)
    part = (target - low) / (high - low)
    return read(before) + part * (read(after) - read(before))


def at_update(measured: Sequence[Measurement], update: float, read: Read) -> float:
    """Return a measure after a number of updates, on a line; NaN outside of the measured ones."""
    for before, after in pairwise(measured):
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


class Side(Enum):
    """Place of the numbers of a comparison; see `Compared.side`."""

    BELOW, ABOVE, NONE, UNKNOWN, TOO_FEW = range(5)


@dataclass(frozen=True)
class Compared:
    """A comparison of arms, paired by seed.

    Attributes:
        values: a number of each seed that can tell.
        seeds: number of seeds that have all the arms.
        logs: the numbers are logs of ratios.
        bounded: seeds among them for which a bound stands.
    """

    values: tuple[float, ...]
    seeds: int
    logs: bool = False
    bounded: int = 0

    @property
    def estimate(self) -> Estimate | None:
        """Mean (of ratios, the geometric one) with its interval; None without a seed."""
        if not self.values:
            return None
        found = estimate(self.values)
        if not self.logs:
            return found
        low, middle, high = (math.exp(own) for own in (found.low, found.mean, found.high))
        return Estimate(middle, low, high, found.n)

    def side(self, least: float) -> Side:
        """Return where the numbers lie.

        Above or below, if the interval leaves out the value without an effect, and the mean is away
        from it by the least effect or more; no difference, if the whole interval is nearer.

        Args:
            least: smallest difference that is an effect; of ratios, smallest factor minus 1.
        """
        found = self.estimate
        if found is None or found.n < LEAST_SEEDS:
            return Side.TOO_FEW
        low, middle, high = found.low, found.mean, found.high
        if self.logs:
            low, middle, high, least = map(math.log, (low, middle, high, 1 + least))
        if low > 0 and middle >= least:
            return Side.ABOVE
        if high < 0 and middle <= -least:
            return Side.BELOW
        return Side.NONE if -least < low and high < least else Side.UNKNOWN

    def text(self) -> str:
        """Return mean, interval, and how many seeds it is from."""
        found, known = self.estimate, f"{len(self.values)} of {self.seeds} seeds"
        if self.bounded:
            known += f", {self.bounded} with a bound"
        if found is None:
            return f"– ({known})"
        between = f" [{found.low:.2f}, {found.high:.2f}]" if found.n > 1 else ""
        return f"{found.mean:.2f}{between} ({known})".replace("-", "−")


def compared(
    runs: Sequence[Run], arms: Sequence[str], number: Callable[..., float], logs: bool = False
) -> Compared:
    """Compare arms on the seeds that have them all.

    Args:
        number: of a run of each arm; seeds for which it is NaN cannot tell.
    """
    own = by_arm(runs)
    seeds = sorted(set.intersection(*(set(own.get(arm, {})) for arm in arms)))
    values = [number(*(own[arm][seed] for arm in arms)) for seed in seeds]
    return Compared(tuple(v for v in values if not math.isnan(v)), len(seeds), logs)


def difference(runs: Sequence[Run], one: str, other: str, read: OfRun) -> Compared:
    """Compare a number of two arms by its difference."""
    return compared(runs, (one, other), lambda first, second: read(first) - read(second))


def ratio(runs: Sequence[Run], one: str, other: str, read: OfRun) -> Compared:
    """Compare a number of two arms by its ratio; a number that is not above 0 cannot tell."""

    def log(first: Run, second: Run) -> float:
        values = read(first), read(second)
        return math.log(values[0] / values[1]) if min(values) > 0 else math.nan

    return compared(runs, (one, other), log, logs=True)


def reading(target: float, measure: str, task: str = FIRST, reach: Reach = RULE) -> OfRun:
    """Return the function that reads a measure of a run where it reaches a reward."""
    return lambda run: at_reward(of_task(run, task), target, MEASURES[measure], reach)


def count_ratio(
    runs: Sequence[Run], one: str, other: str, target: float, measure: str = "rollouts",
    task: str = FIRST, reach: Reach = RULE,
) -> Compared:  # fmt: skip
    """Compare rollouts or updates to a reward by their ratio.

    If one of two runs never reaches the reward, all that it took is a lower bound of what it needs;
    the ratio is then nearer to 1 than the true one. Two such runs cannot tell.
    """
    read, bounded = MEASURES[measure], 0

    def log(*pair: Run) -> float:
        nonlocal bounded
        values = [reading(target, measure, task, reach)(run) for run in pair]
        known = [not math.isnan(value) for value in values]
        starts = [reach.reward(of_task(run, task)[0]) >= target for run in pair]
        if not any(known) or any(starts):
            return math.nan
        ends = [read(of_task(run, task)[-1]) for run in pair]
        values = [value if ok else end for value, ok, end in zip(values, known, ends, strict=True)]
        if min(values) <= 0:
            return math.nan
        bounded += not all(known)
        found = math.log(values[0] / values[1])
        return found if all(known) else max(found, 0.0) if known[1] else min(found, 0.0)

    found = compared(runs, (one, other), log, logs=True)
    return Compared(found.values, found.seeds, True, bounded)


def gain(run: Run, part: str = NEEDS_BOTH, best: bool = False) -> float:
    """Return what the first task added to the expected reward of a part."""
    first, last = of_task(run)[0], of_task(run)[-1]
    return last.best[part] - first.best[part] if best else last.rewards[part] - first.rewards[part]


def more_than_the_sum(runs: Sequence[Run]) -> Compared:
    """Return the gain of `both` minus those of `slow` and `fast`."""
    arms = ("both", "slow", "fast")
    return compared(runs, arms, lambda both, slow, fast: gain(both) - gain(slow) - gain(fast))


def after_as_many_updates(
    runs: Sequence[Run], arm: str = "both", read: Read = old_score, logs: bool = False
) -> Compared:
    """Compare an arm at the end of the first task with `slow` after as many updates.

    Args:
        logs: by the ratio; else by the difference.
    """

    def number(own: Run, slow: Run) -> float:
        end = of_task(own)[-1]
        values = read(end), at_update(of_task(slow), end.update, read)
        if not logs:
            return values[0] - values[1]
        return math.log(values[0] / values[1]) if min(values) > 0 else math.nan

    return compared(runs, (arm, "slow"), number, logs)


def lost(run: Run, verdict: str | None = None) -> float:
    """Return the number of old behaviors that were lost in the end, or of those with a verdict."""
    return float(len([own for own in run.lost.values() if verdict in (None, own)]))


def fewer_lost(runs: Sequence[Run], one: str, other: str, verdict: str | None = None) -> Compared:
    """Compare the numbers of lost behaviors of two arms by their difference."""
    return difference(runs, one, other, lambda run: lost(run, verdict))


def new_meaning(run: Run) -> float:
    """Return the reward of the part `meaning` at the end of the second task: no text teaches it.

    With the best instruction, because a bad one in use can spoil the format.
    """
    return of_task(run, SECOND)[-1].best["meaning"]


def plasticity(runs: Sequence[Run], arm: str = "both") -> Compared:
    """Return what the long first task costs `slow` of the new meaning, minus what it costs an arm.

    Above 0: the arm loses less.
    """

    def number(own_long: Run, own: Run, slow_long: Run, slow: Run) -> float:
        costs = [new_meaning(a) - new_meaning(b) for a, b in ((slow, slow_long), (own, own_long))]
        return costs[0] - costs[1]

    return compared(runs, (f"{arm}_long", arm, "slow_long", "slow"), number)


def premise_holds(runs: Sequence[Run], plan: Plan) -> tuple[int, int]:
    """Return on how many seeds neither slow nor fast learns the part that needs both, of how many.

    The runs themselves say it, whatever `PREMISE.md` says of the bases.
    """
    arms = by_arm(runs)
    one, other = arms.get("slow", {}), arms.get("fast", {})
    ends = [
        [of_task(own[seed])[-1].rewards[NEEDS_BOTH] for own in (one, other)]
        for seed in set(one) & set(other)
    ]
    return sum(max(pair) <= plan.little for pair in ends), len(ends)


def claims(runs: Sequence[Run], plan: Plan) -> dict[str, str]:
    """Return the verdict on each claim, with the numbers that decide it; see the plan's rules."""
    target = plan.target

    def old(other: str, reach: Reach = RULE) -> Compared:
        return difference(runs, "both", other, reading(target, "old score", reach=reach))

    def kl_ratio(measure: str, reach: Reach = RULE) -> Compared:
        return ratio(runs, "both", "slow", reading(target, measure, reach=reach))

    kl, used, taught = kl_ratio("KL"), kl_ratio("KL, as used"), kl_ratio("KL", BY_WEIGHTS)
    spared, by_weights, guarded = old("slow"), old("slow", BY_WEIGHTS), old("guarded")
    steps, plastic = count_ratio(runs, "both", "slow", target), plasticity(runs)
    adds = {f"− {arm}": difference(runs, "both", arm, gain) for arm in ("slow", "fast")}
    text = {
        "− slow": spared,
        "− slow after as many updates": after_as_many_updates(runs),
        "− neutral": old("neutral"),
    }
    held, of = premise_holds(runs, plan)
    near = ("less in both", "more in both", plan.near)
    score = ("lower in both", "higher in both", plan.least)
    over_parts = "at equal reward over all parts only"
    nearer = _restricted(
        _side(kl, *near),
        {"given the same instruction only": _side(used, *near), over_parts: _side(taught, *near)},
    )
    higher = _restricted(_side(spared, *score), {over_parts: _side(by_weights, *score)})
    return {
        "less KL at equal reward": (
            f"{nearer}; {kl.text()}, as used {used.text()}, at equal reward of `meaning` "
            f"{taught.text()}"
        ),
        "fewer rollouts to a reward": (
            f"{_side(steps, 'fewer in both', 'more in both', plan.near)}; {steps.text()}"
        ),
        "both add up": f"{_adds(adds, plan.least)}; the premise holds on {held} of {of} seeds",
        "old behaviors at equal reward": (
            f"{higher}; {spared.text()}, at equal reward of `meaning` {by_weights.text()}"
        ),
        "text, not fewer updates": _all(text, plan.least),
        "less spurious forgetting": _spurious(runs, plan),
        "plasticity after a long task": (
            f"{_side(plastic, 'both loses more', 'both loses less', plan.least)}; "
            f"{plastic.text()}; told, which takes as many updates as slow, "
            f"{plasticity(runs, 'told').text()}"
        ),
        "against AutoGuard": (
            f"{_side(guarded, 'both keeps less', 'both keeps more', plan.least)}; {guarded.text()}"
        ),
    }


def _spurious(runs: Sequence[Run], plan: Plan) -> str:
    """Say whether both has fewer alignment losses, with what tells text from fewer updates."""
    habits, every = fewer_lost(runs, "both", "slow", ALIGNMENT), fewer_lost(runs, "both", "slow")
    side, arms = habits.side(plan.fewest), by_arm(runs)
    said = _side(habits, "fewer in both", "more in both", plan.fewest)
    if side is Side.BELOW and every.estimate is not None and every.estimate.mean > 0:
        said = "cannot be told: fewer alignment losses, but more losses in all"
    elif side is Side.NONE and not any(
        lost(run, ALIGNMENT) for arm in ("both", "slow") for run in arms[arm].values()
    ):
        said += ": neither has any"
    return (
        f"{said}; {habits.text()}, all losses {every.text()}; told − slow, with as many updates, "
        f"{fewer_lost(runs, 'told', 'slow', ALIGNMENT).text()}; both − neutral "
        f"{fewer_lost(runs, 'both', 'neutral', ALIGNMENT).text()}"
    )


def _side(found: Compared, below: str, above: str, least: float) -> str:
    side = found.side(least)
    if side is Side.TOO_FEW:
        return _too_few(len(found.values))
    said = {Side.BELOW: below, Side.ABOVE: above, Side.NONE: "no difference"}
    return said.get(side, "cannot be told")


def _too_few(n: int) -> str:
    return f"cannot be told: {n} seeds can decide, {LEAST_SEEDS} are needed"


def _restricted(verdict: str, others: dict[str, str]) -> str:
    """Add to a verdict on an effect each restriction whose own verdict is another one."""
    if verdict.startswith("cannot") or verdict == "no difference":
        return verdict
    return (
        f"{verdict} {' and '.join(text for text, own in others.items() if own != verdict)}".strip()
    )


def _adds(found: dict[str, Compared], least: float) -> str:
    """Say whether each interval is above the least effect."""
    numbers = ", ".join(f"{name} {own.text()}" for name, own in found.items())
    few = min(len(own.values) for own in found.values())
    if few < LEAST_SEEDS:
        return f"{_too_few(few)}; {numbers}"
    ends = [own.estimate for own in found.values() if own.estimate is not None]
    below = any(own.high < 0 for own in ends)
    return f"{_yes(all(own.low > least for own in ends), below)}; {numbers}"


def _all(found: dict[str, Compared], least: float) -> str:
    """Say whether each comparison is above; no, if one is below or shows no difference."""
    numbers = ", ".join(f"{name} {own.text()}" for name, own in found.items())
    sides = {own.side(least) for own in found.values()}
    if Side.TOO_FEW in sides:
        return f"{_too_few(min(len(own.values) for own in found.values()))}; {numbers}"
    return f"{_yes(sides == {Side.ABOVE}, bool(sides & {Side.BELOW, Side.NONE}))}; {numbers}"


def _yes(sure: bool, not_so: bool) -> str:
    return "yes" if sure else "no" if not_so else "cannot be told"
