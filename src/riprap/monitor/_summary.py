"""A run in a few plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from riprap._formatting import FEW_SECONDS, format_number, format_score, format_steps
from riprap._text import shorten
from riprap.detectors import BehaviorHistory, score
from riprap.guards import describe_actions
from riprap.monitor._cost_meter import CostMeter
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.types import RUN, Action, Alert, Level, OwnDetector, Reading

AlertState = tuple[Alert, int | None]  # an alert, and the step at which it was withdrawn


def summarize(
    conclusion: Sequence[str],
    step: int,
    histories: Mapping[str, BehaviorHistory],
    measured: Mapping[str, bool],
    alerts: Sequence[Alert],
    withdrawn: Mapping[int, int],
    actions: Sequence[Action],
    final: Sequence[Reading],
    notes: Sequence[str],
    stop_reason: str | None,
    cost: str = "",
) -> str:
    """Return the conclusion, and one line for each behavior and for each fact besides.

    Args:
        conclusion: first sentences of the summary.
        measured: whether the last evaluation measured a behavior, by name.
        withdrawn: step at which an alert was withdrawn, by its place in `alerts`.
        final: readings of weights that were exchanged after the last step.
        notes: facts about the run as a whole.
        cost: what the monitor cost, in one sentence.
    """
    states = [(alert, withdrawn.get(place)) for place, alert in enumerate(alerts)]
    evaluations = len({at for history in histories.values() for at in history.steps})
    plural = "" if evaluations == 1 else "s"
    lines = [*conclusion, f"{format_steps(step)} watched, {evaluations} probe evaluation{plural}."]
    lines += [
        _behavior_line(history, measured[name], [s for s in states if s[0].behavior == name], final)
        for name, history in histories.items()
    ]
    about_run = {alert.message: (alert, at) for alert, at in states if alert.behavior == RUN}
    lines += [
        f"Training: {alert.message} (step {alert.step}{'' if at is None else f', until {at}'})."
        for alert, at in about_run.values()
    ]
    lines += [f"Training: {note}." for note in notes]
    lines += [
        f"{text[0].upper()}{text[1:]}."
        for text in dict.fromkeys(r.detail for r in final if r.signal == "final_score")
    ]
    lines += [f"Guard {sentence}" for sentence in describe_actions(actions)]
    if stop_reason is not None:
        lines.append(f"Training was asked to stop: {stop_reason}.")
    lines += [cost] if cost else []
    return "\n".join(lines)


def _behavior_line(
    history: BehaviorHistory, measured: bool, alerts: Sequence[AlertState], final: Sequence[Reading]
) -> str:
    name, floor = shorten(history.behavior), history.floor
    if not history.steps:
        return f"{name}: never measured.{_alert_text(alerts)}"
    start, now = (format_score(score(history.margins[at]), floor) for at in (0, -1))
    text = f"{name}: score {start} → {now} (floor {floor:g})"
    if not measured:
        text += f", not measured since step {history.step}"
    if (share := _final_score(history.behavior, final)) is not None:
        text += f", {format_score(share, floor)} with the weights at the end"
    broke = history.broken_at
    if not history.healthy_at_start:
        text += (
            f"; it starts below its floor: {start} < {floor:.2f}, and is not watched for a break; "
            "use keep_passing=True to watch the probes that the model passes"
        )
    elif broke is not None:
        text += f"; broke at step {broke}"
        if history.step >= broke and score(history.margins[-1]) >= floor:
            text += " and is above its floor again"
    return text + "." + _alert_text(alerts)


def _final_score(name: str, final: Sequence[Reading]) -> float | None:
    found = [r.value for r in final if r.behavior == name and r.signal == "final_score"]
    return found[0] if found else None


def _alert_text(alerts: Sequence[AlertState]) -> str:
    """Name the alerts of each level and their state, and every missing measurement."""
    own = [state for state in alerts if state[0].detector != OwnDetector.UNMEASURED]
    standing = [state for state in own if state[1] is None]
    withdrawn = [state for state in own if state[1] is not None]
    text = f" Alerts that stand: {_level_texts(standing)}." if standing else ""
    text += f" Withdrawn alerts: {_level_texts(withdrawn)}." if withdrawn else ""
    missing = [state for state in alerts if state[0].detector == OwnDetector.UNMEASURED]
    if missing:
        alert, until = missing[-1]
        end = "" if until is None else f" to step {until}"
        text += f" From step {alert.step}{end}: {alert.message}."
    return text


def _level_texts(alerts: Sequence[AlertState]) -> str:
    """Name the first alert of each level, how many came after it, and when the last was withdrawn.

    Args:
        alerts: alerts that stand, or alerts that were withdrawn.
    """
    parts = []
    for level in Level:
        own = [state for state in alerts if state[0].level is level]
        if not own:
            continue
        text = f"{level} at step {own[0][0].step}"
        if more := len(own) - 1:
            times = "once" if more == 1 else f"{more} times"
            text += f", {times} more until step {own[-1][0].step}"
        ends = [withdrawn for _, withdrawn in own if withdrawn is not None]
        if ends:
            text += f" ({'the last was ' if more else ''}withdrawn at step {max(ends)})"
        parts.append(text)
    return ", ".join(parts)


def cost_text(meter: CostMeter, schedule: ProbeSchedule) -> str:
    """Return what the monitor took, by part: of the training time, beside its budget.

    Of a short run, it is told in seconds: most of the time are first evaluations then.
    """
    if not meter.steps or not meter.training_seconds:
        return ""
    names = {"start": "the first evaluation", "evaluations": "other evaluations"}
    names |= {"refreshes": "gradients", "interference": "interference", "hooks": "hooks"}
    if meter.own_seconds < FEW_SECONDS:
        return f"The monitor took {format_number(meter.own_seconds)} s."
    shares = {name: meter.seconds[part] / meter.training_seconds for part, name in names.items()}
    largest = sorted(shares, key=lambda name: -shares[name])[:3]
    parts = ", ".join(f"{name} {_percent(shares[name])}" for name in largest if shares[name] > 0)
    text = f"The monitor took {_percent(meter.share)} of the training time ({parts})"
    budget = schedule.budget
    if budget is None:
        return f"{text}, without a budget."
    text += f"; its budget is {_percent(budget.share)}"
    if meter.share > budget.share:
        names = {"calm": "early evaluations", "urgent": "urgent ones"}
        shares = {name: budget.advance(allowance) for allowance, name in names.items()}
        extra = [f"{name} {_percent(own / meter.training_seconds)}" for name, own in shares.items()]
        text += f", and besides the start, in advance, for {' and '.join(extra)}"
    if schedule.cut_urgency:
        count = schedule.cut_urgency
        times = "once" if count == 1 else f"{count} times"
        text += f"; {times} it could not pay for an urgent evaluation"
    return f"{text}."


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
