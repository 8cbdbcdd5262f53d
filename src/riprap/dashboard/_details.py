"""What opens on the page: one alert with its causes and effects, and the probes at one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from riprap._formatting import format_expected, format_number, format_score, format_steps
from riprap._glossary import signal_words
from riprap._text import escape_control_chars, shorten
from riprap.conclusion import Blame, averted, conclude, rows_to_blame
from riprap.record import Reader, Window, margins_at, position
from riprap.types import Action, Alert, Reading

KINDS = {  # of probes, by whether they passed at the start and pass now
    (True, False): "broke",
    (False, False): "failed",
    (False, True): "recovered",
    (True, True): "passed",
}
MAX_TEXT = 1000  # characters of a message
MAX_PROBES = 200  # of each kind; the page says how many there are


def describe_alert(reader: Reader, number: int) -> dict[str, Any] | None:
    """Return signal, alert, action and effect of an alert; None: there is no such alert.

    Args:
        number: of the alert's row.
    """
    until = position(reader)
    rows = Window(reader, dict.fromkeys(until, 0), until).alerts()
    place = next((place for place, own in enumerate(rows) if own["id"] == number), None)
    if place is None:
        return None
    alert = reader.alerts()[place]
    withdrawn = reader.withdrawals().get(place)
    end = withdrawn if withdrawn is not None else float("inf")
    actions = [own for own in reader.actions() if alert.step <= own.step <= end]
    return {
        "step": alert.step,
        "level": str(alert.level),
        "behavior": shorten(alert.behavior) or "the run",
        "detector": shorten(alert.detector),
        "signal": [_cause(own) for own in alert.readings],
        "alert": _sentence(alert.message),
        "forecast": _forecast(alert),
        "action": _actions(actions),
        "effect": _effect(reader, alert, withdrawn, actions),
        "probes": _probes_at(reader, alert),
    }


def _forecast(alert: Alert) -> str:
    """Return the forecast in words; empty: there is none, or the break was there already."""
    if alert.forecast is None or alert.forecast.is_broken:
        return ""
    return format_expected(alert)


def _cause(reading: Reading) -> str:
    """Say what a reading that raised the alert was."""
    name = signal_words(shorten(reading.signal, 500))
    layer = f" of {shorten(reading.layer)}" if reading.layer else ""
    value = str(reading.state) if reading.value is None else format_number(reading.value)
    unit = f" {shorten(reading.unit)}" if reading.unit else ""
    return f"{name}{layer}: {value}{unit}, at step {reading.step:,}"


def _sentence(text: str) -> str:
    text = escape_control_chars(text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _actions(actions: list[Action]) -> list[str]:
    """Say what each guard did while the alert stood."""
    found = []
    for guard, applied in dict.fromkeys((own.guard, own.applied) for own in actions):
        same = [own for own in actions if (own.guard, own.applied) == (guard, applied)]
        did = "changed training" if applied else "did nothing"
        times = "once" if len(same) == 1 else f"{len(same):,} times"
        span = f"at step {same[0].step:,}"
        if len(same) > 1:
            span = f"from step {same[0].step:,} to {same[-1].step:,}"
        first = f": {_sentence(same[0].detail)}" if same[0].detail else ""
        found.append(f"{shorten(guard)} {did} {times}, {span}{first}")
    return found


def _effect(
    reader: Reader, alert: Alert, withdrawn: int | None, actions: list[Action]
) -> list[str]:
    """Say what came after the alert, from the scores."""
    found = []
    if withdrawn is not None:
        after = format_steps(withdrawn - alert.step)
        found.append(f"The alert was withdrawn at step {withdrawn:,}, {after} later.")
    else:
        found.append("The alert stands.")
    scores = {
        step: score for name, step, score in reader.measured("score") if name == alert.behavior
    }
    own = next((b for b in reader.monitored() if b["name"] == alert.behavior), None)
    if not scores or own is None:
        return found
    before = [step for step in scores if step <= alert.step]
    if before:
        then, last = format_score(scores[before[-1]], own["floor"]), max(scores)
        now = format_score(scores[last], own["floor"])
        found.append(f"The score was {then} at the alert, and is {now} at step {last:,}.")
    outcomes = {o.name: o for o in conclude(reader).outcomes}
    outcome = outcomes.get(shorten(alert.behavior))
    if outcome is None:
        return found
    margins = reader.margins(alert.behavior)
    saved = averted(alert, withdrawn, actions, margins, own["floor"])
    if saved is not None and outcome.broke is None and saved.evidence not in outcome.sentences:
        found.append(saved.evidence)
    return [*found, outcome.sentences]


def _probes_at(reader: Reader, alert: Alert) -> dict[str, Any] | None:
    """Return the probes of the alert's behavior at its step; None: they were not evaluated."""
    names = [own["name"] for own in reader.monitored()]
    if alert.behavior not in names:
        return None
    return describe_probes(reader, names.index(alert.behavior), alert.step)


def describe_probes(reader: Reader, behavior: int, step: int) -> dict[str, Any] | None:
    """Return which probes pass and fail at the last evaluation up to a step; None: none there.

    Args:
        behavior: its number on the page.
    """
    behaviors = reader.monitored()
    if not 0 <= behavior < len(behaviors):
        return None
    own = behaviors[behavior]
    found = margins_at(reader, own["name"], step)
    if len(found) < 2:
        return None
    (start, first), (at, now) = found
    before = first if len(first) == len(now) else None
    answers = reader.answers().get(own["name"], {})
    groups: dict[str, list[dict[str, Any]]] = {
        "broke": [],
        "recovered": [],
        "failed": [],
        "passed": [],
    }
    texts = own.get("texts") or []
    for index in np.argsort(now, kind="stable").tolist():
        passes = bool(now[index] > 0)
        passed = passes if before is None else bool(before[index] > 0)
        kind = KINDS[passed, passes]
        probe: dict[str, Any] = {"index": index, "margin": _number(now[index])}
        if before is not None:
            probe["before"] = _number(before[index])
        if index < len(texts):
            probe["text"] = shorten(str(texts[index]))
        if said := _said(answers, index):
            probe["answers"] = said
        groups[kind].append(probe)
    return {
        "behavior": shorten(own["name"]),
        "step": at,
        "start": start,
        "has_texts": bool(texts),
        "answered": sorted(answers),
        "counts": {kind: len(probes) for kind, probes in groups.items()},
        "groups": {kind: probes[:MAX_PROBES] for kind, probes in groups.items()},
        "rows": _rows(rows_to_blame(reader, own["name"], at)),
    }


def _rows(blame: Blame) -> dict[str, Any]:
    """Return the rows to blame, and what scored them."""
    rows = [
        {
            "name": row.name,
            "share": "" if row.share is None else f"{row.share:.1%}",
            "prompt": row.prompt,
            "response": row.response,
        }
        for row in blame.rows
    ]
    return {"sentences": blame.sentences, "rows": rows}


def _number(value: float) -> str:
    return format_number(float(value))


def _said(answers: Mapping[int, Mapping[int, str]], probe: int) -> list[dict[str, Any]]:
    """Return how the model began to answer a probe; steps with the same answer are one entry."""
    found: list[dict[str, Any]] = []
    for step in sorted(own for own in answers if probe in answers[own]):
        text = shorten(answers[step][probe])
        if not found or text != found[-1]["text"]:
            found.append({"step": step, "text": text})
        found[-1]["until"] = step
    return found
