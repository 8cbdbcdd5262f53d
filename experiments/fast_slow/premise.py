"""The premise: instructions move the reward, weights move it, and a part needs both of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from torch import nn
from transformers import TrainerCallback

from experiments.fast_slow.measure import Look, Meter
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.training import BASES, make_trainer
from experiments.harness import markdown
from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.harness.study import Session, Study
from experiments.worlds.verifiable import PARTS, TASKS, VerifiableWorld
from experiments.worlds.verifiable_text import FORMATS, rule
from riprap.diagnosis import Estimate, estimate

TASK = "first"
FIXED = ("nothing", "text", "weights", "both")
"""Names of what is changed: nothing, the instruction, the weights by GRPO, or both of them."""


@dataclass
class Premise:
    """Figures of one base.

    Attributes:
        seed: of the base.
        scores: of its old behaviors before any training.
        instruction: the best of all that have at most one rule for each operator of the task.
        tried: number of instructions.
        rewards: expected reward by what was changed, then by part; over the problems to train on.
        held_out: the same over the held-out problems.
        proxy: looks along GRPO on the proxy reward.
        seconds: processor time of the pretraining (0 if it was there), the enumeration, and the
            three trainings.
    """

    seed: int
    scores: dict[str, float] = field(default_factory=dict)
    instruction: str = ""
    tried: int = 0
    rewards: dict[str, dict[str, float]] = field(default_factory=dict)
    held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    proxy: list[Look] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@cached("fast_slow/{plan.setting.terms}/premise-{seed}.json")
def measure_premise(seed: int, plan: Plan) -> Premise:
    """Measure the premise on one base: every instruction, and GRPO with two of them."""
    world, found, setting = VerifiableWorld(), Premise(seed), plan.setting
    require_world(setting.world, world.fingerprint)
    began = time.process_time()

    def timed(name: str) -> None:
        nonlocal began
        found.seconds[name] = time.process_time() - began
        began = time.process_time()

    base = world.start(seed, BASES)
    timed("pretraining")
    meter = Meter(world, base, setting.sampled)
    train, test = world.problems(TASK), world.problems(TASK, held_out=True)
    tried = instructions()
    sums = [sum(world.expected_reward(base, test, own).values()) for own in tried]
    found.instruction, found.tried = tried[int(np.argmax(sums))], len(tried)
    timed("enumeration")

    def note(name: str, model: nn.Module, instruction: str) -> None:
        found.rewards[name] = world.expected_reward(model, train, instruction)
        found.held_out[name] = world.expected_reward(model, test, instruction)

    found.scores = meter(base, [""], TASK, 0, 0).scores
    note("nothing", base, "")
    note("text", base, found.instruction)
    for name, instruction in (("weights", ""), ("both", found.instruction)):
        model = world.start(seed, BASES)
        with tempfile.TemporaryDirectory() as folder:
            make_trainer(
                world, model, TASK, setting, seed, setting.premise_updates, folder,
                instruction=instruction,
            ).train()  # fmt: skip
        note(name, model.eval(), instruction)
        timed(name)
    model = world.start(seed, BASES)
    found.proxy.append(meter(model, [""], "proxy", 0, 0))
    with tempfile.TemporaryDirectory() as folder:
        along = _Along(meter, setting.look_every, setting.rollouts, found.proxy)
        make_trainer(
            world, model, "proxy", setting, seed, setting.premise_updates, folder, [along]
        ).train()
    timed("proxy")
    return found


class _Along(TrainerCallback):
    """Looks every few updates."""

    def __init__(self, meter: Meter, every: int, rollouts: int, looks: list[Look]) -> None:
        self.meter, self.every, self.rollouts, self.looks = meter, every, rollouts, looks

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look."""
        step = state.global_step
        if step % self.every == 0:
            self.looks.append(self.meter(model, [""], "proxy", step, step * self.rollouts))


def instructions() -> list[str]:
    """Return all instructions with at most one rule for each operator of the task."""
    operators = [operator for operator, _ in TASKS[TASK].values()]
    choices = [["", *(rule(operator, style) for style in FORMATS)] for operator in operators]
    return [" ".join(filter(None, rules)) for rules in product(*choices)]


def differences(found: Sequence[Premise], part: str) -> dict[str, Estimate]:
    """Return what each change adds to a part's reward, over bases."""

    def over(one: str, *others: str) -> Estimate:
        return estimate(
            [
                own.rewards[one][part] - max(own.rewards[other][part] for other in others)
                for own in found
            ]
        )

    return {
        "text − nothing": over("text", "nothing"),
        "weights − nothing": over("weights", "nothing"),
        "both − the better of the two": over("both", "text", "weights"),
    }


def claims(found: list[Premise], plan: Plan) -> dict[str, str]:
    """Return whether the premise holds: on every base, and with the interval over bases.

    One base has no interval, and tells nothing.
    """

    def mean_is(name: str, part: str, most: float | None = None) -> bool:
        values = [own.rewards[name][part] for own in found]
        return max(values) <= most if most is not None else min(values) >= plan.enough

    def holds(fact: bool) -> str:
        if len(found) == 1:
            return "cannot be told from one base"
        return "holds" if fact else "does not hold"

    text, weights, both = (differences(found, part) for part in PARTS)
    return {
        "the instruction moves the reward, weights fixed": holds(
            text["text − nothing"].low >= plan.least and mean_is("text", "text")
        ),
        "the weights move the reward, instruction fixed": holds(
            weights["weights − nothing"].low >= plan.least
        ),
        "neither alone suffices on the part `both`": holds(
            both["both − the better of the two"].low >= plan.least
            and mean_is("text", "both", plan.little)
            and mean_is("weights", "both", plan.little)
        ),
        "both suffice on the part `both`": holds(mean_is("both", "both")),
    }


def sections(found: list[Premise], plan: Plan) -> dict[str, Any]:
    """Return the tables of the page."""
    return {
        "n_problems": len(VerifiableWorld().problems(TASK)) // len(PARTS),
        "tried": found[0].tried,
        "verdicts": "\n".join(f"- {name}: **{own}**" for name, own in claims(found, plan).items()),
        "rewards": _rewards([own.rewards for own in found]),
        "held_out": _rewards([own.held_out for own in found]),
        "differences": [{"part": part} | _added(found, part) for part in PARTS],
        "bases": [
            {"seed": own.seed, "best instruction": own.instruction or "(none)"}
            | {name: markdown.number(score, 2) for name, score in own.scores.items()}
            for own in found
        ],
        "proxy": _proxy(found),
        "seconds": [
            {"seed": own.seed} | {name: f"{value:.0f}" for name, value in own.seconds.items()}
            for own in found
        ],
    }


def _rewards(found: Sequence[dict[str, dict[str, float]]]) -> list[dict[str, str]]:
    return [
        {"changed": name}
        | {part: _interval(estimate([own[name][part] for own in found])) for part in PARTS}
        for name in FIXED
    ]


def _added(found: Sequence[Premise], part: str) -> dict[str, str]:
    return {name: _interval(own) for name, own in differences(found, part).items()}


def _proxy(found: Sequence[Premise]) -> list[dict[str, str]]:
    rows = []
    for looks in zip(*(own.proxy for own in found), strict=True):
        row = {"update": str(looks[0].update)}
        row["proxy reward"] = _interval(estimate([look.proxy for look in looks]))
        row["true reward"] = _interval(estimate([look.true for look in looks]))
        for name in looks[0].scores:
            row[name] = markdown.median_range([look.scores[name] for look in looks], 2)
        rows.append(row)
    return rows


def _interval(own: Estimate) -> str:
    low, mean, high = (markdown.number(one, 2) for one in (own.low, own.mean, own.high))
    return f"{mean} [{low}, {high}]"


def document(found: list[Premise], plan: Plan) -> dict[str, Any]:
    """Return verdicts and figures as plain data."""
    return {"claims": claims(found, plan), "bases": found}


def jobs(session: Session[Plan]) -> list[tuple[int, Plan]]:
    """Return one job a base."""
    return [(seed, session.plan) for seed in session.seeds]


PREMISE = Study(
    name="fast_slow",
    template="premise.md",
    page="PREMISE.md",
    plan=Plan,
    jobs=jobs,
    simulate=measure_premise,
    claims=claims,
    sections=sections,
    documents={"premise.json": document},
)
