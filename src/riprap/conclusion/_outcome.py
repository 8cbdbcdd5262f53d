"""Outcome of a run for one behavior, derived from its scores, alerts and the guard's actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from riprap._formatting import format_expected, format_score, format_steps
from riprap.conclusion._averted import Averted, averted
from riprap.detectors import score_interval
from riprap.types import Action, Alert, Level, OwnDetector

MAX_SPANS = 3  # of further alerts that a sentence names


class State(StrEnum):
    """State of a behavior at the end of a record.

    - `KEPT`: the score never was under its floor, and no alert of `warning` or above stands.
    - `WEAKENED`: the score never was under its floor, but such an alert stands.
    - `BROKEN`: the score is under its floor, or the margins are not finite.
    - `RECOVERED`: the score was under its floor and is above it again.
    - `UNMEASURED`: the last evaluation could not measure it, or none did.
    - `NEVER_HAD`: the score was under its floor before training.
    - `NOT_TRAINED`: the training changed nothing, so nothing could be lost.
    """

    KEPT = "kept"
    WEAKENED = "weakened"
    BROKEN = "broken"
    RECOVERED = "recovered"
    UNMEASURED = "not measurable"
    NEVER_HAD = "never had"
    NOT_TRAINED = "not trained"


@dataclass(frozen=True)
class Course:
    """What was measured of a behavior.

    Attributes:
        scores: (step, score) in order. A step at which a guard restored weights has two.
        margins: of the probes, by step.
        final: score with the weights that were loaded after the last step; None: there is none.
        exchanged: whether other weights were loaded after the last step.
        last_evaluated: step of the last evaluation of the run, of any behavior.
    """

    name: str
    floor: float
    scores: Sequence[tuple[int, float]]
    margins: Mapping[int, np.ndarray]
    final: float | None
    exchanged: bool
    last_evaluated: int

    @property
    def n_probes(self) -> int:
        """Number of probes at the last evaluation."""
        return len(self.margins[max(self.margins)]) if self.margins else 0


@dataclass(frozen=True)
class BehaviorOutcome:
    """Outcome for one behavior.

    Attributes:
        first, last: first score, and that of the weights at the end; None: not measured.
        n_probes: number of probes at the last evaluation.
        last_step: step of the last measured score.
        broke: first evaluated step with a score under the floor, or with margins that are not
            finite; None if there is none, or if the first score was under the floor.
        announced: the alert of `warning` or above that stood at the break, from its first step;
            None if there was none before the break.
        standing: the highest alert that stands at the end.
        averted: the highest alert that was withdrawn after a guard had acted, where no break came;
            None: there was none.
        reason: why it was not measured; empty if it was, or if no reason is recorded.
        sentences: what happened, in a few plain sentences.
    """

    name: str
    floor: float
    state: State
    first: float | None = None
    last: float | None = None
    n_probes: int = 0
    last_step: int | None = None
    broke: int | None = None
    announced: Alert | None = None
    standing: Alert | None = None
    averted: Averted | None = None
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


Pairs = Sequence[tuple[Alert, int | None]]  # alerts, each with the step of its withdrawal, or None


def judge(course: Course, alerts: Pairs, actions: Sequence[Action]) -> BehaviorOutcome:
    """Derive the outcome for one behavior.

    Args:
        alerts: those about this behavior.
        actions: of the guard, in order.
    """
    name, floor, scores = course.name, course.floor, course.scores
    missing = [
        pair
        for pair in alerts
        if pair[0].detector in (OwnDetector.UNMEASURED, OwnDetector.NOT_FINITE)
    ]
    reason = missing[-1][0].message if missing else ""
    because = f" The reason: {reason}." if reason else ""
    if not scores:
        text = f"No score was measured.{because}"
        return BehaviorOutcome(name, floor, State.UNMEASURED, reason=reason, sentences=text)
    (start, first), (last_step, last) = scores[0], scores[-1]
    if course.exchanged and course.final is not None:
        last = course.final
    if first < floor:
        text = (
            f"At the first evaluation, at step {start:,}, the score was already "
            f"{format_score(first, floor)}, under the floor of {floor:g}: there was nothing to "
            "lose, and no break is looked for."
        )
        return BehaviorOutcome(
            name, floor, State.NEVER_HAD, first, last, course.n_probes, last_step, sentences=text
        )
    own = [pair for pair in alerts if pair[0].detector != OwnDetector.UNMEASURED]
    under = [step for step, score in scores if score < floor]
    diverged = [alert.step for alert, _ in alerts if alert.detector == OwnDetector.NOT_FINITE]
    broke = min([*under[:1], *diverged], default=None)
    stood = [] if broke is None else _alarming(_standing_at(own, broke))
    announced = min(stood, key=lambda alert: alert.step, default=None)
    stands = _standing_at(own, math.inf)
    standing = max(stands, key=lambda alert: (alert.level.rank, -alert.step), default=None)
    saved = _averted(course, own, actions) if broke is None else None
    is_lost = any(a.detector == OwnDetector.NOT_FINITE for a in stands)
    state = _state(course, last, broke, last_step, is_lost, bool(_alarming(stands)))
    parts = [_describe_scores(course, broke, bool(diverged) and broke in diverged)]
    parts.append(_describe_announcement(broke, announced, own))
    if state is State.RECOVERED and not course.exchanged:
        parts.append(_describe_recovery(course))
    if broke is None:
        parts.append(_describe_alerts(own, standing, saved))
    if course.exchanged and course.final is not None:
        text = format_score(course.final, floor)
        parts.append(f"With the weights that were loaded at the end the score is {text}.")
    elif course.exchanged:
        parts.append("With the weights that were loaded at the end it was not measured.")
    elif last_step < course.last_evaluated:
        parts.append(f"After step {last_step:,} no score was measured.{because}")
    return BehaviorOutcome(
        name,
        floor,
        state,
        first,
        last,
        course.n_probes,
        last_step,
        broke,
        announced,
        standing,
        saved,
        reason if state is State.UNMEASURED or is_lost else "",
        " ".join(part for part in parts if part),
    )


def not_trained(own: BehaviorOutcome) -> BehaviorOutcome:
    """Return the outcome of a training that changed nothing, where it would be called kept."""
    if own.state not in (State.KEPT, State.WEAKENED):
        return own
    text = f"Nothing was trained, so nothing could be lost: this is no result. {own.sentences}"
    return replace(own, state=State.NOT_TRAINED, sentences=text)


def _state(
    course: Course, last: float, broke: int | None, last_step: int, is_lost: bool, is_alarmed: bool
) -> State:
    if course.exchanged:
        if course.final is None:
            return State.UNMEASURED
        if last < course.floor:
            return State.BROKEN
        return State.KEPT if broke is None else State.RECOVERED
    if is_lost:
        return State.BROKEN
    if last_step < course.last_evaluated:
        return State.UNMEASURED
    if broke is None:
        return State.WEAKENED if is_alarmed else State.KEPT
    return State.BROKEN if last < course.floor else State.RECOVERED


def _standing_at(pairs: Pairs, step: float) -> list[Alert]:
    """Return the alerts that were raised before a step and had not been withdrawn by then."""
    return [
        alert
        for alert, withdrawn in pairs
        if alert.step < step and (withdrawn is None or withdrawn >= step)
    ]


def _alarming(alerts: Sequence[Alert]) -> list[Alert]:
    return [alert for alert in alerts if alert.level.rank >= Level.WARNING.rank]


def _averted(course: Course, pairs: Pairs, actions: Sequence[Action]) -> Averted | None:
    """Return the highest withdrawn alert between whose two steps a guard changed training."""
    found = (averted(*pair, actions, course.margins, course.floor) for pair in pairs)
    guarded = [own for own in found if own is not None]
    return max(guarded, key=lambda own: own.alert.level.rank, default=None)


def _describe_scores(course: Course, broke: int | None, diverged: bool) -> str:
    scores, floor = course.scores, course.floor
    if broke is not None:
        before = [(step, score) for step, score in scores if step < broke]
        step, score = before[-1] if before else scores[0]
        was = f"at the evaluation before, at step {step:,}, it was {format_score(score, floor)}."
        if diverged:
            return f"At step {broke:,} the margins were not finite, and no score was left; {was}"
        under = min(score for step, score in scores if step == broke)
        found = f"{format_score(under, floor)}, under the floor of {floor:g}"
        return f"At step {broke:,} the score was {found}; {was}"
    lowest, least = min(scores, key=lambda pair: pair[1])
    count = "the only evaluation" if len(scores) == 1 else f"all {len(scores):,} evaluations"
    text = f"The score was at or above the floor of {floor:g} at {count}; "
    worst = format_score(least, floor)
    if least == max(score for _, score in scores):
        return f"{text}it was {worst} throughout."
    return f"{text}the lowest was {worst}, at step {lowest:,}."


def _describe_announcement(broke: int | None, announced: Alert | None, pairs: Pairs) -> str:
    if broke is None:
        return ""
    if announced is not None:
        early = f"{format_steps(broke - announced.step)} before the break"
        text = f"An alert of level {announced.level} stood since step {announced.step:,}, {early}"
        return f"{text}{forecast_text(announced)}."
    early_ones = [alert for alert, _ in pairs if alert.step < broke]
    if early_ones:
        last = max(early_ones, key=lambda alert: alert.step)
        return (
            "No warning stood when it broke; the last alert before it was of level "
            f"{last.level}, at step {last.step:,}."
        )
    return "No alert was raised before it."


def _describe_recovery(course: Course) -> str:
    scores, floor = course.scores, course.floor
    under = [place for place, (_, score) in enumerate(scores) if score < floor]
    if not under:  # the margins were not finite for a while
        return "Later scores are at or above the floor again."
    again, _ = scores[under[-1] + 1]
    lowest, least = min(scores, key=lambda pair: pair[1])
    return (
        f"The score was lowest at step {lowest:,} ({format_score(least, floor)}), and from step "
        f"{again:,} on it was at or above the floor again."
    )


def _describe_alerts(pairs: Pairs, standing: Alert | None, saved: Averted | None) -> str:
    alarming = [pair for pair in pairs if pair[0].level.rank >= Level.WARNING.rank]
    if not alarming:
        return ""
    if standing is not None and standing.level.rank >= Level.WARNING.rank:
        told = standing
        text = f"An alert of level {told.level} has stood since step {told.step:,}"
        text = f"{text}{forecast_text(told)}."
    elif saved is not None:
        told = saved.alert
        text = (
            f"An alert of level {told.level} was raised at step {told.step:,} and withdrawn at "
            f"step {saved.withdrawn:,}. {saved.evidence}"
        )
    else:
        told, withdrawn = max(alarming, key=lambda pair: pair[0].level.rank)
        text = (
            f"An alert of level {told.level} was raised at step {told.step:,} and withdrawn at "
            f"step {0 if withdrawn is None else withdrawn:,}; no break came."
        )
    return text + _further([pair for pair in alarming if pair[0] is not told])


def _further(pairs: Pairs) -> str:
    """Count the other alerts of `warning` or above, and name the steps of some."""
    if not pairs:
        return ""
    spans = [
        f"since step {alert.step:,}" if end is None else f"step {alert.step:,} to {end:,}"
        for alert, end in pairs[:MAX_SPANS]
    ]
    spans += ["…"] if len(pairs) > MAX_SPANS else []
    alerts = "1 more alert" if len(pairs) == 1 else f"{len(pairs):,} more alerts"
    return f" And {alerts} of level warning or above: {', '.join(spans)}."


def forecast_text(alert: Alert) -> str:
    """Return what the alert forecast, as the end of a sentence; nothing without a finite step.

    Nor is a break forecast that was there already.
    """
    forecast = alert.forecast
    if forecast is None or not math.isfinite(forecast.low) or forecast.is_broken:
        return ""
    return f"; it expected the break {format_expected(alert)}"
