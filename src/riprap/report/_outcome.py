"""Outcome of a run for one behavior, as a badge and as sentences."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from riprap._formatting import format_forecast, format_score, format_steps
from riprap.report._run import BehaviorInfo, Run
from riprap.types import Alert, Level


class Outcome(StrEnum):
    """Possible outcomes; values are shown in the report, names are its CSS classes."""

    BROKE = "broke"
    CRITICAL = "critical"
    KEPT = "kept"
    UNDER = "under its floor"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class BehaviorOutcome:
    """Outcome for one behavior.

    Attributes:
        broke: first evaluated step with a score under the floor; None if there is none.
        lead: break − first critical alert, in steps; positive is early, None without both.
    """

    behavior: BehaviorInfo
    outcome: Outcome
    broke: int | None
    lead: int | None
    sentences: str


def assess(run: Run, behavior: BehaviorInfo) -> BehaviorOutcome:
    """Derive the outcome for a behavior from its scores and alerts."""
    scores = run.values(behavior.name, "score")
    if not scores:
        return BehaviorOutcome(behavior, Outcome.UNKNOWN, None, None, "No score was measured.")
    broke = run.broken_at(behavior)
    critical = run.first_alerts(behavior.name).get(Level.CRITICAL)
    if run.below_floor_at_start(behavior):
        first = min(scores)
        text = (
            f"At the first measurement, at step {first:,}, the score was already "
            f"{_score_under_floor(run, behavior, first)}: there was nothing to lose."
        )
        return BehaviorOutcome(behavior, Outcome.UNDER, None, None, text)
    if broke is None:
        active = any(
            alert.level is Level.CRITICAL
            and place not in run.withdrawn
            and not _horizon_passed(alert, run.last_step)
            for place, alert in enumerate(run.alerts)
            if alert.behavior == behavior.name
        )
        outcome = Outcome.CRITICAL if active else Outcome.KEPT
        text = _describe_no_break(run, behavior, critical)
        return BehaviorOutcome(behavior, outcome, None, None, text)
    lead = None if critical is None else broke - critical.step
    text = _describe_break(run, behavior, broke, critical)
    return BehaviorOutcome(behavior, Outcome.BROKE, broke, lead, text)


def headline(run: Run, outcome: BehaviorOutcome) -> str:
    """Outcome, first alerts and lead in one line."""
    broke = outcome.outcome is Outcome.BROKE
    parts = [f"broke at step {outcome.broke:,}" if broke else str(outcome.outcome)]
    parts += [
        f"first {level} at {alert.step:,}"
        for level, alert in run.first_alerts(outcome.behavior.name).items()
    ]
    if outcome.lead is not None:
        parts.append(f"lead {outcome.lead:,}")
    return " · ".join(parts)


def _describe_no_break(run: Run, behavior: BehaviorInfo, critical: Alert | None) -> str:
    scores = run.values(behavior.name, "score")
    lowest = min(scores, key=lambda step: scores[step])
    count = "the only evaluation" if len(scores) == 1 else f"all {len(scores):,} evaluations"
    worst = format_score(scores[lowest], behavior.floor)
    text = f"The score was at or above the floor of {behavior.floor:g} at {count}; "
    if scores[lowest] == max(scores.values()):
        text += f"it was {worst} throughout."
    else:
        text += f"the lowest was {worst}, at step {lowest:,}."
    if critical is None:
        return text
    text += f" A critical alert at step {critical.step:,} {_describe_forecast(critical)}"
    if _horizon_passed(critical, run.last_step):
        return text + ", and no break came within its horizon: a false alarm."
    withdrawn = run.withdrawn.get(run.alerts.index(critical))
    if withdrawn is not None:
        return text + f"; it was withdrawn at step {withdrawn:,}."
    return text + "; its horizon has not passed yet."


def _describe_break(run: Run, behavior: BehaviorInfo, broke: int, critical: Alert | None) -> str:
    scores = run.values(behavior.name, "score")
    before = max(step for step in scores if step < broke)
    text = (
        f"At step {broke:,} the score was {_score_under_floor(run, behavior, broke)}; "
        f"at the evaluation before, at step {before:,}, it was not."
    )
    if critical is None:
        return text + " No critical alert was raised."
    lead = broke - critical.step
    text += f" The first critical alert was raised at step {critical.step:,}, "
    if lead == 0:
        return text + "at the break, not before it."
    if lead < 0:
        return text + f"{format_steps(-lead)} too late."
    text += f"{format_steps(lead)} before the break, and {_describe_forecast(critical)}."
    if critical.forecast is not None and lead > critical.forecast.horizon:
        text += " The break came after the horizon of the alert, so it counts as a false alarm."
    return text


def _score_under_floor(run: Run, behavior: BehaviorInfo, step: int) -> str:
    value = run.values(behavior.name, "score")[step]
    return f"{format_score(value, behavior.floor)}, under the floor of {behavior.floor:g}"


def _describe_forecast(alert: Alert) -> str:
    if alert.forecast is None:
        return "had no forecast"
    return f"forecast the break {format_forecast(alert.forecast)}"


def _horizon_passed(alert: Alert, last_step: int) -> bool:
    return alert.forecast is not None and last_step >= alert.step + alert.forecast.horizon
