"""One new task on the biographies world: what falls, what comes back, and where it happened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from experiments.spurious_forgetting.plan import Plan
from experiments.worlds import Biographies
from experiments.worlds.biographies_changed import trained, training
from experiments.worlds.continual_rows import Rows
from riprap.diagnosis import fitting, kept, move, recover, weights_of

RUNS = Path("runs/spurious")
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
class Along:
    """One look at the way.

    Attributes:
        asked, stated: share of questions about the known people answered right, and of statements.
        new: share of the new questions answered right.
    """

    step: int
    asked: float
    stated: float
    new: float


@dataclass(frozen=True)
class Back:
    """What was brought back at a step.

    Attributes:
        now: score before anything is brought back, on probes that chose nothing.
        curve: the same by source and count of examples.
        half: share of questions about half of the people that are right after those about the
            other half were learned again; `half_before`: before that.
        parts: share of all questions that are right with the start's weights in one part.
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
    along: list[Along]
    back: list[Back]

    @classmethod
    def load(cls, file: Path) -> Run:
        """From the JSON that `simulate` wrote."""
        found = json.loads(file.read_text())
        found["along"] = [Along(**one) for one in found["along"]]
        found["back"] = [Back(**one) for one in found["back"]]
        return cls(**found)


def simulate(task: str, frozen: str, seed: int, plan: Plan) -> Run:
    """Train, or take up what was found before."""
    file = RUNS / f"{plan.config_hash()}-{task}-{frozen}-{seed}.json".replace(" ", "_")
    if file.exists():
        return Run.load(file)
    torch.set_num_threads(1)
    run = _run(task, frozen, seed, plan)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(run)))
    partial.rename(file)
    return run


def _run(task: str, frozen: str, seed: int, plan: Plan) -> Run:
    world = Biographies()
    start, model = world.start(seed), world.start(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in FROZEN[frozen]))
    new = world.asked(world.new, TASKS[task])
    asked, stated = world.asked(world.people), world.statements(world.people)
    data = world.mixed([new], [world.config.batch], seed)
    along: list[Along] = []
    back: list[Back] = []
    steps = training(world, model, data)
    for step, before in zip(plan.at, (0, *plan.at), strict=False):
        for _ in islice(steps, step - before):
            pass
        looks = (world.right(model, rows) for rows in (asked, stated, new))
        along.append(Along(step, *looks))
        if frozen == "nothing" and step in (plan.early, plan.late):
            back.append(_back(world, start, model, step, seed, plan))
    return Run(task, frozen, seed, along, back)


def _back(
    world: Biographies, start: nn.Module, model: nn.Module, step: int, seed: int, plan: Plan
) -> Back:
    found = recover(
        model,
        world.behavior(),
        world.examples(),
        reference=start,
        irrelevant=world.irrelevant(),
        counts=plan.counts,
        draws=plan.draws,
    )
    half = len(world.people) // 2
    taught, held = world.asked(world.people[:half]), world.asked(world.people[half:])

    def relearn() -> float:
        trained(world, model, world.mixed([taught], [world.config.batch], seed), plan.relearned)
        return world.right(model, held)

    before = world.right(model, held)
    asked = world.asked(world.people)
    return Back(
        step,
        str(found.verdict),
        found.evidence.score_now,
        {f"{point.source} {point.count}": point.score.mean for point in found.curve},
        before,
        _on_a_copy(model, relearn),
        {part: _on_a_copy(model, _set_back(world, start, model, part, asked)) for part in PARTS},
    )


def _set_back(
    world: Biographies, start: nn.Module, model: nn.Module, part: str, asked: Rows
) -> Callable[[], float]:
    def act() -> float:
        there = weights_of(start)
        names = fitting(model, there, lambda name: any(one in name for one in PARTS[part]))
        move(model, there, there, 1.0, names)
        return world.right(model, asked)

    return act


def _on_a_copy(model: nn.Module, act: Callable[[], float]) -> float:
    with kept(model):
        return act()
