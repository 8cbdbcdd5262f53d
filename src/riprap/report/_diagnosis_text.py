"""A diagnosis in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from riprap.diagnosis import Estimate, Verdict
from riprap.diagnosis.recovery import LOST, Recovery
from riprap.diagnosis.repair import Repair
from riprap.report import _formatting as words
from riprap.types import ReadingStatus

if TYPE_CHECKING:
    from riprap.report._diagnosis_page import Diagnosed, Diagnosis

NOT_RUN, MEASURED, INSUFFICIENT = (
    ReadingStatus.NOT_RUN,
    ReadingStatus.MEASURED,
    ReadingStatus.INSUFFICIENT,
)
ADVICE = {
    "as it is": "leave it as it is",
    "few-shot": "train on ten examples of what was lost",
    "replay": "train on ten examples of every behaviour",
    "interpolation": "merge with the base model",
    "interpolation of layers": "merge the layers that moved most with the base model's",
    "task vector": "subtract what unlearning does to the base model",
    "checkpoint": "go back to an earlier checkpoint",
}
BADGES = {
    Verdict.ALIGNMENT: "warning",
    Verdict.KNOWLEDGE: "critical",
    Verdict.BOTH: "critical",
    Verdict.INSUFFICIENT: "watch",
}


@dataclass(frozen=True)
class Line:
    """One piece of evidence."""

    kind: str
    state: str
    text: str


def share(value: float) -> str:
    """A share in per cent; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.0%}"


def between(one: Estimate | None) -> str:
    """A share with its 95 % interval, where it has one."""
    if one is None:
        return "–"
    if math.isnan(one.low):
        return share(one.mean)
    return f"{share(one.mean)} [{share(one.low)}, {share(one.high)}]"


def title(name: str) -> str:
    """A behaviour's name as a title."""
    return name.replace("_", " ").capitalize()


def badge(one: Diagnosed) -> tuple[str, str]:
    """Class and text of the mark beside a verdict."""
    if not one.probes:
        return "", "not measured"
    if one.recovery is None:
        return ("watch", "fell") if one.broke else ("kept", "kept")
    return BADGES[one.recovery.verdict], str(one.recovery.verdict)


def headline(one: Diagnosed) -> str:
    """The verdict, in one sentence."""
    name = title(one.name)
    if not one.probes:
        return f"{name}: not measured; {one.missing.get('probes', 'no probes')}."
    scores = f"on {share(one.now)} of the probes, before on {share(one.before)}"
    if one.recovery is None:
        return f"{name}: it still does it, {scores}."
    evidence, verdict = one.recovery.evidence, one.recovery.verdict
    left = f"{share(evidence.retained)} of the knowledge is left on what was lost"
    what = "it" if one.now < 0.5 else "a part of it"
    count = _most(one.recovery)
    own, other = evidence.regained_own, evidence.regained_irrelevant
    regained = f"{count} examples bring back {share(own)} of the lost score"
    if not math.isnan(other):
        regained += f", {count} irrelevant ones {share(other)}"
    most = own if math.isnan(other) else max(own, other)
    said = {
        Verdict.ALIGNMENT: f"it no longer does {what}, but it still can: {regained}"
        if most >= 0.5
        else f"it no longer does {what}, but {left}; {regained}",
        Verdict.KNOWLEDGE: f"it can no longer do {what}: {left}; {regained}",
        Verdict.BOTH: f"it can no longer do {what}, and does not say what it still knows: {left}",
        Verdict.INSUFFICIENT: "it does it less, and whether it still can cannot be told: "
        + one.recovery.reason,
    }
    return f"{name}: {said[verdict]} ({scores})."


def _most(recovery: Recovery) -> int:
    return max((point.count for point in recovery.curve), default=0)


def fell(before: float, now: float, floor: float) -> bool:
    """Whether there is a loss to explain."""
    return now < floor or before - now >= LOST


def evidence(one: Diagnosed) -> list[Line]:
    """The pieces of evidence, each with its state."""
    return [_recovery(one), _control(one), _forced(one), _decoded(one), _along(one)]


def _recovery(one: Diagnosed) -> Line:
    if one.recovery is None:
        return Line("recovery", NOT_RUN, one.missing.get("recovery", ""))
    found = one.recovery
    names = {"own": "own examples", "irrelevant": "irrelevant ones"}
    parts = [
        f"{point.count} {names[point.source]} bring back {between(point.share)}"
        for point in found.curve
        if point.source in names
    ]
    state = INSUFFICIENT if found.verdict is Verdict.INSUFFICIENT else MEASURED
    return Line("recovery", state, f"{', '.join(parts)} of the lost score. {found.reason}.")


def _control(one: Diagnosed) -> Line:
    """What the same examples give to a model without the behaviour."""
    found = None if one.recovery is None else one.recovery
    if found is None or math.isnan(found.evidence.regained_control):
        why = one.missing.get("control", one.missing.get("recovery", ""))
        return Line("control", NOT_RUN, why)
    reached = share(found.evidence.regained_control)
    return Line(
        "control",
        MEASURED,
        f"the same examples bring a model that never had it to {reached} of the base's score.",
    )


def _forced(one: Diagnosed) -> Line:
    if one.forced is None:
        return Line("forced prefix", NOT_RUN, one.missing.get("forced prefix", ""))
    reference = one.forced.reference or ()
    then = {given.count: given for given in reference}
    parts = [
        f"given {given.count} tokens, the next follows on {between(given.next)}"
        + (f" (base model {between(then[given.count].next)})" if given.count in then else "")
        for given in one.forced.now
        if given.state is MEASURED
    ]
    if not parts:
        return Line("forced prefix", INSUFFICIENT, one.forced.now[0].detail)
    return Line("forced prefix", MEASURED, "; ".join(parts) + ".")


def _decoded(one: Diagnosed) -> Line:
    found = one.decoded
    if found is None:
        return Line("decodability", NOT_RUN, one.missing.get("decodability", ""))
    if found.retained is None:
        return Line("decodability", found.state, found.detail)
    text = f"at {found.best} a linear probe keeps {between(found.retained)} of what it told apart"
    return Line("decodability", found.state, f"{text} in the base model, above shuffled labels.")


def _along(one: Diagnosed) -> Line:
    along = one.along
    if along is None:
        return Line("path back", NOT_RUN, one.missing.get("path", ""))
    if along.insufficient:
        return Line("path back", INSUFFICIENT, along.insufficient)
    reached = [s for s, v in zip(along.shares, along.scores, strict=True) if v >= along.floor]
    where = (
        f"the score is at its floor from {share(reached[0])} of the way"
        if reached
        else ("the score is at its floor nowhere on the way")
    )
    return Line(
        "path back",
        MEASURED,
        f"{where} back to the base model; barrier {along.barrier:.2f} in score, "
        f"{words.number(along.margin_barrier)} in mean margin.",
    )


def verdict_on_repairs(found: Diagnosis) -> str:
    """What to do, in a sentence."""
    if not found.repairs:
        return "Nothing is lost, and nothing is to be repaired."
    if found.cheapest is None:
        return "None of the repairs brings all behaviours to their floors."
    one = found.cheapest
    return f"The cheapest that brings all behaviours to their floors: {advice(one)}."


def advice(repair: Repair) -> str:
    """What is to be done, with its setting."""
    text = ADVICE[repair.kind]
    if repair.kind == "replay" and repair.task is not None:
        text += " and of the task"
    return text if repair.kind == "as it is" else f"{text} ({repair.detail})"


def divergence_text(found: Diagnosis) -> str:
    """Where the two models differ."""
    apart = found.divergence
    if apart is None:
        return ""
    text = (
        f"KL(base ‖ tuned) {words.number(apart.forward.mean)} nats per response token; at the "
        f"first token {words.number(apart.forward_at[0].mean)}, at the last "
        f"{words.number(apart.forward_at[-1].mean)}."
    )
    cause = apart.cause
    if cause is not None and cause.back is not None:
        text += f" Setting {cause.layer} alone back brings back {share(cause.back)} of it."
    return text
