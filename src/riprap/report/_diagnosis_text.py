"""Texts of a diagnosis, for the page and the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass

from riprap._formatting import format_number
from riprap.diagnosis import BehaviorDiagnosis, Diagnosis, Estimate, Recovery, Repair, Verdict
from riprap.diagnosis.recovery import TOO_FEW_PROBES
from riprap.types import ReadingStatus

NOT_RUN, MEASURED = ReadingStatus.NOT_RUN, ReadingStatus.MEASURED
INSUFFICIENT = ReadingStatus.INSUFFICIENT
REPAIRS = {  # by kind
    "no repair": "no repair",
    "few-shot": "train on ten examples of what was lost",
    "replay": "train on ten examples of every behavior",
    "interpolation": "merge with the base model",
    "interpolation of layers": "merge the most changed layers with those of the base model",
    "task vector": "subtract the task vector of unlearning",
    "checkpoint": "go back to an earlier checkpoint",
}
BADGES = {
    Verdict.ALIGNMENT: "warning",
    Verdict.KNOWLEDGE: "critical",
    Verdict.BOTH: "critical",
    Verdict.DAMAGE: "critical",
    Verdict.INSUFFICIENT: "watch",
}


CAUSES = {
    Verdict.ALIGNMENT: "the model still can, but no longer does",
    Verdict.KNOWLEDGE: "the model no longer knows how",
    Verdict.BOTH: "the model no longer knows how, and no longer tries",
    Verdict.DAMAGE: "the model is damaged",
    Verdict.INSUFFICIENT: "why is not settled",
}
MAX_NAMED = 2  # behaviors that the first line names


@dataclass(frozen=True)
class EvidenceLine:
    """One piece of evidence, with its status."""

    kind: str
    status: ReadingStatus
    text: str


def format_share(value: float) -> str:
    """Format a share as a percentage; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.0%}"


def format_interval(estimate: Estimate | None) -> str:
    """Format a share with its 95 % interval, if it has one."""
    if estimate is None:
        return "–"
    if math.isnan(estimate.low):
        return format_share(estimate.mean)
    low, high = format_share(estimate.low), format_share(estimate.high)
    return f"{format_share(estimate.mean)} [{low}, {high}]"


def title(name: str) -> str:
    """Format a behavior's name as a title."""
    return name.replace("_", " ").capitalize()


def badge(behavior: BehaviorDiagnosis) -> tuple[str, str]:
    """Return CSS class and text of the badge beside a headline."""
    if not behavior.probes:
        return "", "not measured"
    if behavior.recovery is None:
        return ("watch", "dropped") if behavior.is_broken else ("kept", "kept")
    return BADGES[behavior.recovery.verdict], str(behavior.recovery.verdict)


def first_line(diagnosis: Diagnosis) -> str:
    """Return what was lost, and why, in one to three short sentences."""
    measured = [own for own in diagnosis.behaviors if own.probes]
    if not measured:
        return "Nothing can be concluded: no behavior was measured."
    lost = [own for own in measured if own.is_broken or own.recovery is not None]
    lost.sort(key=lambda own: own.score_now - own.score_before)
    if not lost:
        count = len(measured)
        return "The behavior was kept." if count == 1 else f"All {count} behaviors were kept."
    sentences = []
    for own in lost[:MAX_NAMED]:
        drop = _describe_drop(own.score_before, own.score_now)
        cause = "" if own.recovery is None else f": {CAUSES[own.recovery.verdict]}"
        sentences.append(f"{title(own.name)} is {drop}{cause}.")
    more = len(lost) - MAX_NAMED
    if more > 0:
        sentences.append(f"{more} more behavior{'s were' if more > 1 else ' was'} lost.")
    return " ".join(sentences)


def repair_rows(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """Return the table of the repairs, as texts."""
    has_task = bool(diagnosis.repairs) and diagnosis.repairs[0].task_score is not None
    rows = []
    for own in diagnosis.repairs:
        row = {"repair": describe_repair(own)}
        for name, floor in diagnosis.floors.items():
            row[f"{title(name)} (floor {floor:g})"] = format_share(own.scores[name])
        kl = "–" if own.divergence is None else format_number(own.divergence)
        row["KL from the tuned model"] = kl
        if has_task:
            row["task, nats per token"] = format_number(-(own.task_score or 0.0))
        passes = "passes" if own.passes(diagnosis.floors) else ""
        row |= {"steps": str(own.steps), "seconds": format_number(own.seconds)}
        row["result"] = "cheapest" if own is diagnosis.cheapest_repair else passes
        rows.append(row)
    return rows


def broken_rows(behavior: BehaviorDiagnosis) -> list[dict[str, str]]:
    """Return the table of broken probes with both models' answers, as texts."""
    return [
        {
            "probe": str(own.index),
            "prompt": own.text or "no text",
            "base model": "–" if own.before is None else own.before,
            "tuned model": "–" if own.now is None else own.now,
        }
        for own in behavior.broken
    ]


def diagnosis_headline(behavior: BehaviorDiagnosis) -> str:
    """Return the result for a behavior in one sentence."""
    name = title(behavior.name)
    if not behavior.probes:
        return f"{name}: not measured; {behavior.missing.get('probes', 'it has no probes')}."
    now, before = format_share(behavior.score_now), format_share(behavior.score_before)
    scores = f"{now} of the probes pass, {before} before"
    if behavior.recovery is None:
        drop = _describe_drop(behavior.score_before, behavior.score_now)
        return f"{name}: {drop if behavior.is_broken else 'no loss'} ({scores})."
    return f"{name}: {_explain_verdict(behavior, behavior.recovery)} ({scores})."


def _describe_drop(before: float, now: float) -> str:
    """Say how much of a behavior was lost, in words that fit the scores."""
    if now <= 0:
        return "lost completely"
    share = (before - now) / before
    return "mostly lost" if share >= 0.5 else "partly lost"


def _probes_needed(behavior: BehaviorDiagnosis, recovery: Recovery) -> str:
    needed = recovery.evidence.probes_needed
    if TOO_FEW_PROBES not in recovery.reason or not needed > 1:
        return ""
    count = math.ceil(behavior.probes * needed)
    return f"; {count} probes would probably do (--n-probes), {behavior.probes} were used"


def _explain_verdict(behavior: BehaviorDiagnosis, recovery: Recovery) -> str:
    score_now = behavior.score_now
    if recovery.verdict is Verdict.INSUFFICIENT:
        drop = _describe_drop(behavior.score_before, score_now)
        needed = _probes_needed(behavior, recovery)
        return f"{drop}, cause undetermined: {recovery.reason}{needed}"
    evidence, count = recovery.evidence, max((p.count for p in recovery.curve), default=0)
    what = "most of this" if score_now < 0.5 else "part of this"
    what = "this at all" if score_now <= 0 else what
    retained = f"on the lost probes, {format_share(evidence.retained)} of the knowledge remains"
    if recovery.verdict is Verdict.DAMAGE:
        return f"the model no longer does {what}, and {recovery.reason}"
    if recovery.verdict is Verdict.BOTH:
        pieces = " and ".join(evidence.lost_disposition)
        return f"the model can no longer do {what}: {retained}, and {pieces}"
    own, unrelated = evidence.recovered_by_examples, evidence.recovered_by_unrelated
    recovered = f"{count} examples restore {format_share(own)} of the lost score"
    if not math.isnan(unrelated):
        recovered += f", {count} unrelated ones {format_share(unrelated)}"
    if recovery.verdict is Verdict.KNOWLEDGE:
        return f"the model can no longer do {what}: {retained}; {recovered}"
    largest = own if math.isnan(unrelated) else max(own, unrelated)
    if largest >= 0.5:
        return f"the model no longer does {what}, but it still can: {recovered}"
    return f"the model no longer does {what}, but {retained}; {recovered}"


def evidence(behavior: BehaviorDiagnosis) -> list[EvidenceLine]:
    """Return all pieces of evidence, each with its status."""
    kinds = (_recovery, _curve, _naive_model, _prefix_forcing, _decodability, _linear_path)
    return [describe(behavior) for describe in kinds]


def _recovery(behavior: BehaviorDiagnosis) -> EvidenceLine:
    recovery = behavior.recovery
    if recovery is None:
        return EvidenceLine("recovery", NOT_RUN, behavior.missing.get("recovery", ""))
    names = {"own": "examples", "unrelated": "unrelated ones"}
    parts = [
        f"{point.count} {names[point.source]} restore {format_interval(point.recovered)}"
        for point in recovery.curve
        if point.source in names
    ]
    status = INSUFFICIENT if recovery.verdict is Verdict.INSUFFICIENT else MEASURED
    text = f"{', '.join(parts)} of the lost score; {recovery.reason}."
    return EvidenceLine("recovery", status, text)


def _curve(behavior: BehaviorDiagnosis) -> EvidenceLine:
    recovery = behavior.recovery
    why = behavior.missing.get("curve", behavior.missing.get("recovery", ""))
    if recovery is None or why:
        return EvidenceLine("recovery by count", NOT_RUN, why)
    parts = [
        f"{point.count}: {format_interval(point.recovered)}"
        for point in recovery.curve
        if point.source == "own"
    ]
    text = f"share of the lost score that returns after so many examples: {', '.join(parts)}."
    return EvidenceLine("recovery by count", MEASURED, text)


def _naive_model(behavior: BehaviorDiagnosis) -> EvidenceLine:
    recovery = behavior.recovery
    if recovery is None or math.isnan(recovery.evidence.naive_model_score):
        why = behavior.missing.get("naive model", behavior.missing.get("recovery", ""))
        return EvidenceLine("naive model", NOT_RUN, why)
    reached = format_share(recovery.evidence.naive_model_score)
    text = f"after the same examples, the naive model reaches {reached} of the base model's score."
    return EvidenceLine("naive model", MEASURED, text)


def _prefix_forcing(behavior: BehaviorDiagnosis) -> EvidenceLine:
    kind, forcing = "prefix forcing", behavior.prefix_forcing
    if forcing is None:
        return EvidenceLine(kind, NOT_RUN, behavior.missing.get(kind, ""))
    base = {point.count: point for point in forcing.reference or ()}
    parts = []
    for point in forcing.now:
        if point.status is MEASURED:
            text = f"given {point.count} tokens, {format_interval(point.next_token)} continue"
            if point.count in base:
                text += f" (base model {format_interval(base[point.count].next_token)})"
            parts.append(text)
    if not parts:
        return EvidenceLine(kind, INSUFFICIENT, forcing.now[0].detail)
    return EvidenceLine(kind, MEASURED, "; ".join(parts) + ".")


def _decodability(behavior: BehaviorDiagnosis) -> EvidenceLine:
    kind, decoded = "linear decodability", behavior.decodability
    if decoded is None:
        return EvidenceLine(kind, NOT_RUN, behavior.missing.get(kind, ""))
    if decoded.retained is None:
        return EvidenceLine(kind, decoded.status, decoded.detail)
    text = (
        f"at {decoded.best}, the accuracy of a linear probe above shuffled labels is "
        f"{format_interval(decoded.retained)} of that in the base model."
    )
    return EvidenceLine(kind, decoded.status, text)


def _linear_path(behavior: BehaviorDiagnosis) -> EvidenceLine:
    kind, path = "linear path", behavior.linear_path
    if path is None:
        return EvidenceLine(kind, NOT_RUN, behavior.missing.get(kind, ""))
    if path.insufficient:
        return EvidenceLine(kind, INSUFFICIENT, path.insufficient)
    reached = [a for a, score in zip(path.alphas, path.scores, strict=True) if score >= path.floor]
    where = (
        f"the score reaches its floor at {format_share(reached[0])} of the path"
        if reached
        else "the score does not reach its floor on the path"
    )
    text = (
        f"{where} to the base model; barrier {path.barrier:.2f} in score, "
        f"{format_number(path.margin_barrier)} in mean margin."
    )
    return EvidenceLine(kind, MEASURED, text)


def repair_summary(diagnosis: Diagnosis) -> str:
    """Return the recommended repair in one sentence."""
    if diagnosis.no_repairs:
        return f"Repairs: {diagnosis.no_repairs}."
    if not diagnosis.repairs:
        return "No behavior was lost; no repair needed."
    if diagnosis.cheapest_repair is None:
        return "No repair brings all behaviors to their floors."
    repair = describe_repair(diagnosis.cheapest_repair)
    return f"The cheapest repair that brings all behaviors to their floors: {repair}."


def describe_repair(repair: Repair) -> str:
    """Describe a repair and its setting."""
    text = REPAIRS[repair.kind]
    if repair.kind == "replay" and repair.task_score is not None:
        text += " and of the task"
    return text if repair.kind == "no repair" else f"{text} ({repair.detail})"


def divergence_text(diagnosis: Diagnosis) -> str:
    """Describe where the two models differ."""
    divergence = diagnosis.divergence
    if divergence is None:
        return ""
    text = (
        f"KL(base ‖ tuned) is {format_number(divergence.forward.mean)} nats per response token: "
        f"{format_number(divergence.forward_at[0].mean)} at the first token and "
        f"{format_number(divergence.forward_at[-1].mean)} at the last."
    )
    layer = divergence.most_causal_layer
    if layer is not None and layer.restored_share is not None:
        text += (
            f" Restoring {layer.layer} alone to the base model removes "
            f"{format_share(layer.restored_share)} of it."
        )
    return text
