"""Sentences and numbers of the conclusion of a run."""

from __future__ import annotations

from riprap._formatting import (
    format_cost,
    format_expected,
    format_number,
    format_score,
    format_steps,
)
from riprap._text import shorten
from riprap.conclusion._facts import Checkpoint, RunFacts
from riprap.conclusion._outcome import BehaviorOutcome, State
from riprap.types import Alert

MAX_NAMED = 3  # behaviors that the first line names
WORST_FIRST = (State.BROKEN, State.UNMEASURED, State.WEAKENED, State.RECOVERED, State.NEVER_HAD)


def first_line(facts: RunFacts, keep: int | None, checkpoint: Checkpoint | None) -> str:
    """Return what to keep, and what became of the behaviors.

    Args:
        keep: last evaluated step at which no behavior was broken.
        checkpoint: last healthy checkpoint that is still there.
    """
    if all(own.first is None for own in facts.outcomes):
        return "Nothing can be concluded: no behavior was measured."
    idle = "" if facts.idle is None else facts.idle.message
    if idle and facts.unchanged:
        return f"Training changed nothing: {idle}."
    sentences = [_keep(facts, keep, checkpoint)]
    if all(own.state is State.KEPT for own in facts.outcomes):
        sentences.append(_all_kept(facts))
    sentences += _changes(facts)
    sentences.append(_last_good(facts, keep))
    sentences += [f"A part of the model does not train: {idle}."] if idle else []
    text = " ".join(sentence for sentence in sentences if sentence)
    return text if facts.finished else f"So far, to step {facts.last_step:,}: {text}"


def _keep(facts: RunFacts, keep: int | None, checkpoint: Checkpoint | None) -> str:
    """Say which weights to keep; nothing while training goes on, or if that is not known."""
    if not facts.finished or all(own.state is State.NEVER_HAD for own in facts.outcomes):
        return ""
    broken = facts.of(State.BROKEN)
    if facts.exchanged:
        if broken:
            verb = "is" if len(broken) == 1 else "are"
            names = _listed([own.name for own in broken])
            return (
                f"Do not keep the weights that were loaded at the end: {names} {verb} under the "
                "floor in them."
            )
        if facts.of(State.UNMEASURED):
            return ""
        return "Keep the weights that were loaded at the end."
    lost = broken + [own for own in facts.of(State.UNMEASURED) if own.broke is not None]
    if not lost:
        if facts.of(State.UNMEASURED):
            return ""
        if facts.of(State.WEAKENED):
            if facts.stopped == facts.last_step:
                return f"Training was stopped at step {facts.last_step:,}; nothing is broken."
            return f"The last weights, of step {facts.last_step:,}, pass, but an alert stands."
        at_end = checkpoint is not None and checkpoint.step == facts.last_step
        if checkpoint is not None and at_end:
            return f"Keep {checkpoint.name}."
        if not facts.checkpoints and facts.of(State.RECOVERED):
            return ""
        return f"Keep the last weights, of step {facts.last_step:,}."
    if checkpoint is not None:
        return f"Keep {checkpoint.name}."
    if keep is None or keep == facts.first_step:
        return "Keep the model as it was before training."
    return ""


def _last_good(facts: RunFacts, keep: int | None) -> str:
    """Say when all was well for the last time, where no weights of before a loss are there."""
    lost = facts.of(State.BROKEN) + [o for o in facts.of(State.UNMEASURED) if o.broke is not None]
    if not lost or facts.exchanged or not facts.finished or keep in (None, facts.first_step):
        return ""
    healthy = facts.healthy_checkpoints()
    if any(own.is_kept for own in healthy):
        return ""
    text = f"The last good evaluation was at step {keep:,}"
    gone = "was kept" if healthy else "is recorded"
    up_to = " up to it" if facts.checkpoints else ""
    return f"{text}; no checkpoint{up_to} {gone}."


def _changes(facts: RunFacts) -> list[str]:
    """Return a sentence for each behavior that was not simply kept; the worst first."""
    changed = [own for state in WORST_FIRST for own in facts.of(state)]
    changed += [own for own in facts.of(State.KEPT) if own.averted is not None]
    sentences = [_change(own, facts) for own in changed[:MAX_NAMED]]
    more = len(changed) - MAX_NAMED
    if more > 0:
        sentences.append(f"{more} more behavior{'s' * (more > 1)} changed.")
    return sentences


def _change(own: BehaviorOutcome, facts: RunFacts) -> str:
    name = own.name[0].upper() + own.name[1:] if own.name.isalpha() else own.name
    if own.state is State.NEVER_HAD:
        score = format_score(own.first or 0.0, own.floor)
        return f"{name} was under its floor before training ({score} < {own.floor:g})."
    broke = "" if own.broke is None else f"{name} broke at step {own.broke:,}"
    if own.state is State.UNMEASURED:
        where = " in these weights" if facts.exchanged else _after(own.last_step)
        return f"{f'{broke}, and' if broke else name} was not measured{where}."
    if own.state is State.BROKEN and not broke:
        return f"{name} is under its floor in these weights only."
    if own.state is State.BROKEN:
        parts = [broke, "no warning stood before it"]
        if own.announced is not None:
            parts[1] = f"a warning stood since step {own.announced.step:,}"
        if (blame := facts.blames.get(own.name)) is not None and blame.summary:
            parts.append(blame.summary)
        if (restored := facts.restored.get(own.name)) is not None:
            parts.append(restored.sentence(own.floor))
        return f"{'; '.join(parts)}."
    if own.state is State.RECOVERED:
        return f"{broke} and is above its floor again."
    if own.state is State.WEAKENED and own.standing is not None:
        since = f"an alert of level {own.standing.level} stands since step {own.standing.step:,}"
        return f"{name} is weakened: {since}."
    return f"A guard acted on {own.name}."


def _after(step: int | None) -> str:
    return "" if step is None else f" after step {step:,}"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _all_kept(facts: RunFacts) -> str:
    """Say that nothing broke."""
    count = len(facts.outcomes)
    return "The behavior was kept." if count == 1 else f"All {count} behaviors were kept."


def unseen(facts: RunFacts) -> str:
    """Return which loss may have been missed where nothing broke, as one sentence; or nothing."""
    weak = min(facts.powers, key=lambda name: facts.powers[name].seen_below, default=None)
    if weak is None or not all(own.state is State.KEPT for own in facts.outcomes):
        return ""
    power = facts.powers[weak]
    return (
        f"Had {weak} fallen to a true score of {power.seen_below:.2f}, its {power.n_probes} probes "
        "would have missed it 1 time in 5."
    )


def about_weights(facts: RunFacts, named: Checkpoint | None) -> str:
    """Return what is known of the checkpoint that the first line names, or why it names none.

    Args:
        named: that checkpoint; None: the first line names none.
    """
    if not facts.finished or (facts.idle is not None and facts.unchanged):
        return ""
    return " ".join(text for text in (_early_end(facts), _about_named(facts, named)) if text)


def _early_end(facts: RunFacts) -> str:
    """Say who ended a run before its plan did, as far as that is known."""
    if not facts.ended_early:
        return ""
    text = f"The run ended at step {facts.last_step:,} of {facts.planned:,} planned"
    if facts.stopped != facts.last_step:
        return f"{text}; nothing that was recorded asked for it."
    reason = f" ({facts.stop_reason})" if facts.stop_reason else ""
    return f"{text}: training was asked to stop{reason}."


def _about_named(facts: RunFacts, named: Checkpoint | None) -> str:
    if named is None:
        if facts.checkpoints or facts.exchanged:
            return ""
        if all(own.state is State.KEPT for own in facts.outcomes):
            return "No checkpoint was recorded; none is needed, as the last weights are good."
        return "No checkpoint was recorded, so none can be named."
    stood: dict[str, Alert] = {}  # the highest one, by behavior
    for alert, withdrawn in facts.alerts:
        if alert.step <= named.step and (withdrawn is None or withdrawn > named.step):
            highest = stood.setdefault(alert.behavior, alert)
            if alert.level.rank > highest.level.rank:
                stood[alert.behavior] = alert
    parts = ["every behavior was at or above its floor"]
    if facts.of(State.NEVER_HAD):
        parts = ["every behavior that the model had at the start was at or above its floor"]
    parts += [
        f"an alert of level {alert.level} about {shorten(name)} stood"
        for name, alert in stood.items()
    ] or ["no warning stood"]
    if before := [loss for step, loss in facts.losses if step <= named.step]:
        last = facts.losses[-1][1]
        end = "" if last == before[-1] else f" ({format_number(last)} at the end)"
        parts.append(f"the training loss was {format_number(before[-1])}{end}")
    return f"At {named.name} (step {named.step:,}) {', '.join(parts)}."


def numbers(facts: RunFacts) -> dict[str, str]:
    """Return up to three numbers as text: behaviors, the worst of them, training or its cost."""
    above = facts.of(State.KEPT, State.WEAKENED, State.RECOVERED, State.NOT_TRAINED)
    found = {"behaviors above their floors": f"{len(above)} of {len(facts.outcomes)}"}
    broke = [own for own in facts.outcomes if own.broke is not None]
    if broke:
        worst = min(broke, key=lambda own: own.lead or 0)
        lead = "none" if worst.lead is None else format_steps(worst.lead)
        found[f"warning before {worst.name} broke"] = lead
    elif above:
        lowest = {own.name: min(s for _, s in facts.courses[own.name].scores) for own in above}
        worst = min(above, key=lambda own: lowest[own.name] - own.floor)
        score = format_score(lowest[worst.name], worst.floor)
        found[f"lowest score, {worst.name}"] = f"{score} (floor {worst.floor:g})"
    weakened = [own for own in facts.of(State.WEAKENED) if own.standing and own.standing.forecast]
    if facts.diverged is not None:
        finite = f"{format_number(facts.losses[0][1])} → " if facts.losses else ""
        found["training loss"] = f"{finite}not finite since step {facts.diverged:,}"
    elif weakened and weakened[0].standing is not None:
        forecast = format_expected(weakened[0].standing)
        found[f"forecast break of {weakened[0].name}"] = forecast
    elif len(facts.losses) > 1:
        first, last = facts.losses[0][1], facts.losses[-1][1]
        found["training loss"] = f"{format_number(first)} → {format_number(last)}"
    elif facts.cost is not None:
        found["time of the monitor"] = format_cost(facts.cost, facts.cost_seconds)
    return found
