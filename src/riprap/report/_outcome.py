"""What became of one behaviour, in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from riprap.report import _formatting as words
from riprap.report._run import Run, Watched
from riprap.types import Alert, Level


class Fate(StrEnum):
    """Outcomes, as the report words them."""

    BROKE = "broke"
    CRITICAL = "critical"
    KEPT = "kept"
    UNDER = "under its floor"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Verdict:
    """The outcome for one behaviour.

    Attributes:
        broke: first visited step whose score was under the floor, None where it never fell there.
        lead: break − first critical alert, in steps; positive is early, None without either.
        sentences: what happened, in words.
    """

    watched: Watched
    fate: Fate
    broke: int | None
    lead: int | None
    sentences: str


def judge(run: Run, watched: Watched) -> Verdict:
    """What became of a behaviour, from its scores and alerts (formulas, section 3)."""
    scores = run.of(watched.name, "score")
    if not scores:
        text = "No score was measured, so nothing can be said about it."
        return Verdict(watched, Fate.UNKNOWN, None, None, text)
    broke = run.broken_at(watched)
    critical = run.first_alerts(watched.name).get(Level.CRITICAL)
    if run.under_at_start(watched):
        first = min(scores)
        text = (
            f"When it was first measured, at step {first:,}, its score was already "
            f"{_score(run, watched, first)}: there was nothing to lose."
        )
        return Verdict(watched, Fate.UNDER, None, None, text)
    if broke is None:
        standing = critical is not None and not _expired(critical, run.last_step)
        fate = Fate.CRITICAL if standing else Fate.KEPT
        return Verdict(watched, fate, None, None, _kept(run, watched, critical))
    lead = None if critical is None else broke - critical.step
    return Verdict(watched, Fate.BROKE, broke, lead, _broke(run, watched, broke, critical))


def headline(run: Run, verdict: Verdict) -> str:
    """The outcome, the first alerts and the lead, in a few words."""
    broke = verdict.fate is Fate.BROKE
    facts = [f"broke at step {verdict.broke:,}" if broke else str(verdict.fate)]
    facts += [
        f"first {level} at {alert.step:,}"
        for level, alert in run.first_alerts(verdict.watched.name).items()
    ]
    if verdict.lead is not None:
        facts.append(f"lead {verdict.lead:,}")
    return " · ".join(facts)


def _kept(run: Run, watched: Watched, critical: Alert | None) -> str:
    scores = run.of(watched.name, "score")
    lowest = min(scores, key=lambda step: scores[step])
    visits = "its only visit" if len(scores) == 1 else f"all {len(scores):,} visits"
    worst = words.score(scores[lowest], watched.floor)
    text = f"Its score stayed at or above the floor of {watched.floor:g} at {visits}; "
    if scores[lowest] == max(scores.values()):
        text += f"it was {worst} throughout."
    else:
        text += f"the lowest was {worst}, at step {lowest:,}."
    if critical is None:
        return text
    text += f" A critical alert at step {critical.step:,} {_foretold(critical)}"
    if _expired(critical, run.last_step):
        return text + ", and no break came within its horizon: a false alarm."
    return text + "; its horizon is not over yet."


def _broke(run: Run, watched: Watched, broke: int, critical: Alert | None) -> str:
    scores = run.of(watched.name, "score")
    before = max(step for step in scores if step < broke)
    text = (
        f"At step {broke:,} its score was {_score(run, watched, broke)}; "
        f"the visit at step {before:,} had still found it at or above."
    )
    if critical is None:
        return text + " No critical alert was raised."
    lead = broke - critical.step
    if lead > 0:
        early = critical.forecast is not None and lead > critical.forecast.horizon
        return (
            text + f" The first critical alert came at step {critical.step:,}, "
            f"{words.steps(lead)} before the break, and {_foretold(critical)}."
            + " The break came after its horizon, so it counts as a false alarm."
            * early
        )
    late = "at the break, not before it" if lead == 0 else f"{words.steps(-lead)} too late"
    return text + f" The first critical alert came at step {critical.step:,}, {late}."


def _score(run: Run, watched: Watched, step: int) -> str:
    value = run.of(watched.name, "score")[step]
    return f"{words.score(value, watched.floor)}, under the floor of {watched.floor:g}"


def _foretold(alert: Alert) -> str:
    if alert.forecast is None:
        return "carried no forecast"
    return f"forecast the break {words.forecast(alert.forecast)}"


def _expired(alert: Alert, last_step: int) -> bool:
    """Whether the alert's own horizon has passed."""
    return alert.forecast is not None and last_step >= alert.step + alert.forecast.horizon
