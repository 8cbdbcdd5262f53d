"""Outcome of a run for one behavior, derived from its scores, alerts and the guard's actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from riprap._formatting import format_forecast, format_score, format_steps
from riprap.detectors import score_interval
from riprap.types import Action, Alert, Level

UNMEASURED = "unmeasured"  # detector of the monitor's own alert on missing measurements


class State(StrEnum):
    """State of a behavior at the end of a record.

    - `KEPT`: the score never was under its floor, and no alert of `warning` or above stands.
    - `WEAKENED`: the score never was under its floor, but such an alert stands.
    - `BROKEN`: the score is under its floor.
    - `RECOVERED`: the score was under its floor and is above it again.
    - `UNMEASURED`: the last evaluation could not measure it, or none did.
    - `NEVER_HAD`: the score was under its floor before training.
    """

    KEPT = "kept"
    WEAKENED = "weakened"
    BROKEN = "broken"
    RECOVERED = "recovered"
    UNMEASURED = "not measurable"
    NEVER_HAD = "never had"


@dataclass(frozen=True)
class BehaviorOutcome:
    """Outcome for one behavior.

    Attributes:
        n_probes: number of probes at the last evaluation.
        first, last: first and last measured score; None if none was measured.
        last_step: step of the last measured score.
        broke: first evaluated step with a score under the floor; None if there is none, or if the
            first score was under it.
        healthy: last evaluated step before the break, or the last of all; None if there is none.
        announced: the alert of `warning` or above that stood at the break, from its first step;
            None if there was none before the break.
        standing: the highest alert that stands at the end.
        averted: an alert that was withdrawn after a guard had acted; None: there was none.
        reason: why it was not measured; empty if it was, or if no reason is recorded.
        sentences: what happened, in a few plain sentences.
    """

    name: str
    floor: float
    state: State
    n_probes: int = 0
    first: float | None = None
    last: float | None = None
    last_step: int | None = None
    broke: int | None = None
    healthy: int | None = None
    announced: Alert | None = None
    standing: Alert | None = None
    averted: Alert | None = None
    reason: str = ""
    sentences: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the last score (Wilson), as if the probes were a random sample."""
        if self.last is None or not self.n_probes:
            return None
        return score_interval(self.last, self.n_probes)

    @property
    def lead(self) -> int | None:
        """Steps between the announcement and the break; None without both."""
        if self.broke is None or self.announced is None:
            return None
        return self.broke - self.announced.step


@dataclass(frozen=True)
class _Alerts:
    """Alerts about one behavior, with the steps at which they were withdrawn."""

    pairs: Sequence[tuple[Alert, int | None]]

    def standing_at(self, step: float) -> list[Alert]:
        """Return the alerts that were raised before a step and had not been withdrawn by then."""
        return [
            alert
            for alert, withdrawn in self.pairs
            if alert.step < step and (withdrawn is None or withdrawn >= step)
        ]


def outcome(
    name: str,
    floor: float,
    scores: Mapping[int, float],
    n_probes: int,
    alerts: Sequence[tuple[Alert, int | None]],
    actions: Sequence[Action],
    last_evaluated: int,
) -> BehaviorOutcome:
    """Derive the outcome for one behavior.

    Args:
        scores: measured score by step, in order.
        alerts: those about this behavior, each with the step at which it was withdrawn, or None.
        actions: of the guard, in order.
        last_evaluated: step of the last probe evaluation of the run.
    """
    own = _Alerts([pair for pair in alerts if pair[0].detector != UNMEASURED])
    missing = [pair for pair in alerts if pair[0].detector == UNMEASURED]
    reason = missing[-1][0].message if missing else ""
    because = f" The reason: {reason}." if reason else ""
    if not scores:
        text = f"No score was measured.{because}"
        return BehaviorOutcome(name, floor, State.UNMEASURED, reason=reason, sentences=text)
    steps = list(scores)
    first, last, last_step = scores[steps[0]], scores[steps[-1]], steps[-1]
    broke = next((step for step in steps if scores[step] < floor), None)
    if broke == steps[0]:
        text = (
            f"At the first evaluation, at step {broke:,}, the score was already "
            f"{format_score(first, floor)}, under the floor of {floor:g}: there was nothing to "
            "lose, and no break is looked for."
        )
        return BehaviorOutcome(
            name, floor, State.NEVER_HAD, n_probes, first, last, last_step, sentences=text
        )
    before_break = [step for step in steps if broke is None or step < broke]
    announced = None
    if broke is not None:
        stood = [a for a in own.standing_at(broke) if a.level.rank >= Level.WARNING.rank]
        announced = min(stood, key=lambda alert: alert.step, default=None)
    stands = own.standing_at(float("inf"))
    standing = max(stands, key=lambda alert: (alert.level.rank, -alert.step), default=None)
    averted = _averted(own, actions) if broke is None else None
    if last_step < last_evaluated:
        state = State.UNMEASURED
    elif broke is None:
        alarmed = standing is not None and standing.level.rank >= Level.WARNING.rank
        state = State.WEAKENED if alarmed else State.KEPT
    else:
        state = State.BROKEN if last < floor else State.RECOVERED
    parts = [_describe_scores(scores, floor, broke), _describe_announcement(broke, announced, own)]
    if state is State.RECOVERED:
        parts.append(_describe_recovery(scores, floor, broke))
    if broke is None:
        parts.append(_describe_alerts(own, standing, averted, actions))
    if state is State.UNMEASURED:
        parts.append(f"After step {last_step:,} no score was measured.{because}")
    return BehaviorOutcome(
        name,
        floor,
        state,
        n_probes,
        first,
        last,
        last_step,
        broke,
        before_break[-1],
        announced,
        standing,
        averted,
        reason if state is State.UNMEASURED else "",
        " ".join(part for part in parts if part),
    )


def _averted(alerts: _Alerts, actions: Sequence[Action]) -> Alert | None:
    """Return the highest withdrawn alert between whose two steps a guard changed training."""
    acted = [action.step for action in actions if action.applied]
    found = [
        alert
        for alert, withdrawn in alerts.pairs
        if withdrawn is not None
        and alert.level.rank >= Level.WARNING.rank
        and any(alert.step <= step <= withdrawn for step in acted)
    ]
    return max(found, key=lambda alert: alert.level.rank, default=None)


def _describe_scores(scores: Mapping[int, float], floor: float, broke: int | None) -> str:
    if broke is not None:
        steps = list(scores)
        before = steps[steps.index(broke) - 1]
        return (
            f"At step {broke:,} the score was {format_score(scores[broke], floor)}, under the "
            f"floor of {floor:g}; at the evaluation before, at step {before:,}, it was "
            f"{format_score(scores[before], floor)}."
        )
    lowest = min(scores, key=lambda step: scores[step])
    count = "the only evaluation" if len(scores) == 1 else f"all {len(scores):,} evaluations"
    text = f"The score was at or above the floor of {floor:g} at {count}; "
    worst = format_score(scores[lowest], floor)
    if scores[lowest] == max(scores.values()):
        return f"{text}it was {worst} throughout."
    return f"{text}the lowest was {worst}, at step {lowest:,}."


def _describe_announcement(broke: int | None, announced: Alert | None, alerts: _Alerts) -> str:
    if broke is None:
        return ""
    if announced is not None:
        early = f"{format_steps(broke - announced.step)} before the break"
        text = f"A {announced.level} stood since step {announced.step:,}, {early}"
        return f"{text}; it forecast the break {_forecast(announced)}."
    early_ones = [alert for alert, _ in alerts.pairs if alert.step < broke]
    if early_ones:
        last = max(early_ones, key=lambda alert: alert.step)
        return (
            "No warning stood when it broke; the last alert before it was a "
            f"{last.level} at step {last.step:,}."
        )
    return "No alert was raised before it."


def _describe_recovery(scores: Mapping[int, float], floor: float, broke: int | None) -> str:
    steps = list(scores)
    under = [step for step in steps if scores[step] < floor]
    again = steps[steps.index(under[-1]) + 1]
    lowest = min(under, key=lambda step: scores[step])
    return (
        f"The score was lowest at step {lowest:,} ({format_score(scores[lowest], floor)}), and "
        f"from step {again:,} on it was at or above the floor again."
    )


def _describe_alerts(
    alerts: _Alerts, standing: Alert | None, averted: Alert | None, actions: Sequence[Action]
) -> str:
    alarming = [pair for pair in alerts.pairs if pair[0].level.rank >= Level.WARNING.rank]
    if not alarming:
        return ""
    if standing is not None and standing.level.rank >= Level.WARNING.rank:
        return (
            f"A {standing.level} stands since step {standing.step:,}; it forecast the break "
            f"{_forecast(standing)}."
        )
    if averted is not None:
        withdrawn = next(at for alert, at in alerts.pairs if alert is averted)
        assert withdrawn is not None
        between = [a for a in actions if a.applied and averted.step <= a.step <= withdrawn]
        steps = format_steps(len({action.step for action in between}))
        guards = " and ".join(dict.fromkeys(action.guard for action in between))
        return (
            f"A {averted.level} was raised at step {averted.step:,} and withdrawn at step "
            f"{withdrawn:,}; in between {guards} changed training at {steps}. Averted? Only a run "
            "without the guard could tell."
        )
    alert, withdrawn = max(alarming, key=lambda pair: pair[0].level.rank)
    return (
        f"A {alert.level} was raised at step {alert.step:,} and withdrawn at step "
        f"{0 if withdrawn is None else withdrawn:,}; no break came."
    )


def _forecast(alert: Alert) -> str:
    return "at no step that it named" if alert.forecast is None else format_forecast(alert.forecast)
