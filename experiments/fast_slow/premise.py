"""The premise: instructions move the reward, weights move it, and a part needs both of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from torch import nn
from transformers import TrainerCallback

from experiments.fast_slow.measure import Measurement, Meter
from experiments.fast_slow.plan import Plan, Setting
from experiments.fast_slow.training import BASES, make_trainer
from experiments.harness import markdown
from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.harness.study import Session, Study
from experiments.worlds.verifiable import PARTS, TASKS, VerifiableWorld
from experiments.worlds.verifiable_text import FORMATS, rule
from riprap.diagnosis import Estimate, estimate

TASK = "first"
NOTHING, TEXT, WEIGHTS, TOGETHER = "nothing", "instruction", "weights", "instruction and weights"
CHANGED = (NOTHING, TEXT, WEIGHTS, TOGETHER)
"""Names of what is changed: nothing, the instruction, the weights by GRPO, or both of them."""
SHARED, NEEDS_BOTH = PARTS[:2], PARTS[2]


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
        proxy: measurements along GRPO on the proxy reward.
        seconds: processor time of the pretraining (0 if it was there), the enumeration, and the
            three trainings.
    """

    seed: int
    scores: dict[str, float] = field(default_factory=dict)
    instruction: str = ""
    tried: int = 0
    rewards: dict[str, dict[str, float]] = field(default_factory=dict)
    held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    proxy: list[Measurement] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@cached("fast_slow/{plan.setting.terms}/premise-{seed}.json")
def measure_premise(seed: int, plan: Plan) -> Premise:
    """Measure the premise on one base: every instruction, and GRPO with two of them."""
    world, setting = VerifiableWorld(), plan.setting
    require_world(setting.world, world.fingerprint)
    found = premise_of(world, seed, setting)
    meter = Meter(world, world.start(seed, BASES), setting.sampled)
    model, began = world.start(seed, BASES), time.process_time()
    found.proxy.append(meter(model, [""], "proxy", 0, 0))
    with tempfile.TemporaryDirectory() as folder:
        along = _Along(meter, setting.measure_every, setting.rollouts, found.proxy)
        make_trainer(
            world, model, "proxy", setting, seed, setting.premise_updates, folder, [along]
        ).train()
    found.seconds["proxy"] = time.process_time() - began
    return found


def premise_of(world: VerifiableWorld, seed: int, setting: Setting) -> Premise:
    """Measure what an instruction, the weights, and both of them reach on one base of a world."""
    found, began = Premise(seed), time.process_time()

    def timed(name: str) -> None:
        nonlocal began
        found.seconds[name] = time.process_time() - began
        began = time.process_time()

    base = world.start(seed, BASES)
    timed("pretraining")
    train, test = world.problems(TASK), world.problems(TASK, held_out=True)
    found.instruction, found.tried = best_instruction(world, base), len(instructions())
    timed("enumeration")

    def note(name: str, model: nn.Module, instruction: str) -> None:
        found.rewards[name] = world.expected_reward(model, train, instruction)
        found.held_out[name] = world.expected_reward(model, test, instruction)

    found.scores = Meter(world, base, setting.sampled)(base, [""], TASK, 0, 0).scores
    note(NOTHING, base, "")
    note(TEXT, base, found.instruction)
    for name, instruction in ((WEIGHTS, ""), (TOGETHER, found.instruction)):
        model = world.start(seed, BASES)
        with tempfile.TemporaryDirectory() as folder:
            make_trainer(
                world, model, TASK, setting, seed, setting.premise_updates, folder,
                instruction=instruction,
            ).train()  # fmt: skip
        note(name, model.eval(), instruction)
        timed(name)
    return found


class _Along(TrainerCallback):
    """Measures every few updates."""

    def __init__(
        self, meter: Meter, every: int, rollouts: int, measured: list[Measurement]
    ) -> None:
        self.meter, self.every, self.rollouts, self.measured = meter, every, rollouts, measured

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure."""
        step = state.global_step
        if step % self.every == 0:
            self.measured.append(self.meter(model, [""], "proxy", step, step * self.rollouts))


def best_instruction(world: VerifiableWorld, base: nn.Module, task: str = TASK) -> str:
    """Return the instruction under which a base is best on the held-out problems of a task."""
    tried, problems = instructions(task), world.problems(task, held_out=True)
    sums = [sum(world.expected_reward(base, problems, own).values()) for own in tried]
    return tried[int(np.argmax(sums))]


def instructions(task: str = TASK) -> list[str]:
    """Return all instructions with at most one rule for each operator of the task."""
    operators = [operator for operator, *_ in TASKS[task].values()]
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
        "instruction − nothing": over(TEXT, NOTHING),
        "weights − nothing": over(WEIGHTS, NOTHING),
        "both of them − the better one": over(TOGETHER, TEXT, WEIGHTS),
    }


def claims(found: list[Premise], plan: Plan) -> dict[str, str]:
    """Return whether the premise holds: on every base, and with the interval over bases.

    One base has no interval, and tells nothing.
    """
    form, meaning, both = (differences(found, part) for part in PARTS)

    def holds(sure: bool, on_base: Callable[[Premise], bool] = lambda _: True) -> str:
        if len(found) == 1:
            return "cannot be told from one base"
        good = sum(map(on_base, found))
        if sure and good == len(found):
            return "holds"
        return f"does not hold (on {good} of {len(found)} bases)" if sure else "does not hold"

    return {
        "the instruction moves the reward, weights fixed": holds(
            form["instruction − nothing"].low >= plan.least,
            lambda own: own.rewards[TEXT]["format"] >= plan.enough,
        ),
        "the weights move the reward, instruction fixed": holds(
            meaning["weights − nothing"].low >= plan.least
        ),
        f"neither alone suffices on the part `{NEEDS_BOTH}`": holds(
            both["both of them − the better one"].low >= plan.least,
            lambda own: max(own.rewards[one][NEEDS_BOTH] for one in (TEXT, WEIGHTS)) <= plan.little,
        ),
        f"together they suffice on the part `{NEEDS_BOTH}`": holds(
            True, lambda own: own.rewards[TOGETHER][NEEDS_BOTH] >= plan.enough
        ),
    }


def sections(found: list[Premise], plan: Plan) -> dict[str, Any]:
    """Return the tables of the page."""
    return {
        "n_problems": len(VerifiableWorld().problems(TASK)) // len(PARTS),
        "tried": found[0].tried,
        "verdicts": "\n".join(f"- {name}: **{own}**" for name, own in claims(found, plan).items()),
        "rewards": rewards_table([own.rewards for own in found]),
        "held_out": rewards_table([own.held_out for own in found]),
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


def rewards_table(found: Sequence[dict[str, dict[str, float]]]) -> list[dict[str, str]]:
    """Return a row for each change: its rewards by part, over bases."""
    return [
        {"changed": name}
        | {part: _interval(estimate([own[name][part] for own in found])) for part in PARTS}
        for name in CHANGED
    ]


def _added(found: Sequence[Premise], part: str) -> dict[str, str]:
    return {name: _interval(own) for name, own in differences(found, part).items()}


def _proxy(found: Sequence[Premise]) -> list[dict[str, str]]:
    rows = []
    for at in zip(*(own.proxy for own in found), strict=True):
        row = {"update": str(at[0].update)}
        row["proxy reward"] = _interval(estimate([one.proxy for one in at]))
        row["true reward"] = _interval(estimate([one.true for one in at]))
        for name in at[0].scores:
            row[name] = markdown.median_range([one.scores[name] for one in at], 2)
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
