"""One new task on the biographies world: loss, recovery, and the layers that lost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from torch import nn

from experiments.harness.cache import cached
from experiments.spurious_forgetting.plan import Plan
from experiments.worlds import Biographies
from experiments.worlds.biographies import trained, training
from riprap.diagnosis import interpolate_, named_weights, recover, restore_weights

STORED_SOURCES = {"own": "own", "unrelated": "irrelevant", "reference": "reference"}
TASKS = {"same format": "plain", "other format": "well"}  # how new people's questions are answered
FROZEN: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "low": ("embed_tokens", "layers.0."),
    "high": ("layers.2.", "lm_head", "model.norm"),
}
PARTS: dict[str, tuple[str, ...]] = {
    "embeddings": ("embed_tokens",),
    "block 0": ("layers.0.",),
    "block 1": ("layers.1.",),
    "block 2": ("layers.2.",),
    "head": ("lm_head", "model.norm"),
    "low": FROZEN["low"],
    "high": FROZEN["high"],
}


@dataclass(frozen=True)
class Evaluation:
    """Shares of right answers after a step.

    Attributes:
        asked, stated: of the questions about known people, and of the statements about them.
        new: of the new questions.
    """

    step: int
    asked: float
    stated: float
    new: float


@dataclass(frozen=True)
class Recovery:
    """Recovery at a step.

    Attributes:
        now: score before any recovery, on probes that chose nothing.
        curve: the same by source and count of examples.
        half_before: share of right answers about half of the people.
        half: the same after the questions about the other half were learned again.
        parts: share of right answers with the start's weights in one part.
        verdict: of `diagnosis.recover`.
    """

    step: int
    verdict: str
    now: float
    curve: dict[str, float]
    half_before: float
    half: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Run:
    """A new task learned with some layers frozen."""

    task: str
    frozen: str
    seed: int
    along: list[Evaluation]
    back: list[Recovery]


@cached("spurious_forgetting/{plan.terms}-{task}-{frozen}-{seed}.json")
def simulate(task: str, frozen: str, seed: int, plan: Plan) -> Run:
    """Train on a new task, with evaluations and recoveries at the steps of the plan."""
    world = Biographies()
    start, model = world.start(seed), world.start(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in FROZEN[frozen]))
    new = world.asked(world.new, TASKS[task])
    asked, stated = world.asked(world.people), world.statements(world.people)
    data = world.mixed([new], [world.config.batch], seed)
    along: list[Evaluation] = []
    back: list[Recovery] = []
    steps = training(world, model, data)
    for step, before in zip(plan.at, (0, *plan.at), strict=False):
        for _ in islice(steps, step - before):
            pass
        shares = (world.right(model, rows) for rows in (asked, stated, new))
        along.append(Evaluation(step, *shares))
        if frozen == "nothing" and step in (plan.early, plan.late):
            back.append(_recover(world, start, model, step, seed, plan))
    return Run(task, frozen, seed, along, back)


def _recover(
    world: Biographies, start: nn.Module, model: nn.Module, step: int, seed: int, plan: Plan
) -> Recovery:
    diagnosed = recover(
        model,
        world.behavior(),
        world.examples(),
        reference=start,
        unrelated_examples=world.irrelevant(),
        shot_counts=plan.counts,
        draws=plan.draws,
        full=True,
    )
    half = len(world.people) // 2
    taught, other_half = world.asked(world.people[:half]), world.asked(world.people[half:])
    asked = world.asked(world.people)
    before = world.right(model, other_half)
    with restore_weights(model):
        trained(world, model, world.mixed([taught], [world.config.batch], seed), plan.relearned)
        after = world.right(model, other_half)
    weights, parts = named_weights(start), {}
    for part, inside in PARTS.items():
        names = [n for n, _ in model.named_parameters() if any(one in n for one in inside)]
        with restore_weights(model):
            interpolate_(model, weights, weights, 1.0, names)
            parts[part] = world.right(model, asked)
    curve = {f"{STORED_SOURCES[p.source]} {p.count}": p.score.mean for p in diagnosed.curve}
    now = diagnosed.evidence.score_now
    return Recovery(step, str(diagnosed.verdict), now, curve, before, after, parts)
