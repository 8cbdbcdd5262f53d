"""A run of the experiment: one arm learns the tasks in sequence."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import TrainerCallback

from experiments.fast_slow.arms import ARMS, Arm
from experiments.fast_slow.measure import Look, Meter
from experiments.fast_slow.plan import Plan, Setting
from experiments.fast_slow.training import BASES, make_trainer
from experiments.harness.cache import cached
from experiments.harness.markdown import commit
from experiments.harness.plan import require_world
from experiments.worlds.verifiable import VerifiableWorld
from riprap.diagnosis import recover
from riprap.fastslow import EditGrammar, FastSlow
from riprap.guards import AutoGuard, SelfDistillationBuffer
from riprap.integrations.hf import MonitorCallback
from riprap.monitor import Monitor

MIN_LOSS = 0.1  # of a behavior's score, from which the diagnosis asks what was lost
EXAMPLES = 16  # that it relearns from, at most


@dataclass
class Stage:
    """Results of one task.

    Attributes:
        instructions: in use at the end, the best first.
        updates, rollouts: of the task; rollouts of cycles included.
        alerts: step, behavior and level of each alert of the monitor, which watches the habit of
            short answers too where the reward is the proxy; `broken`: step at which a behavior was
            first under its floor, by name.
        lost: verdict of `diagnosis.recover` on each behavior that lost a tenth of its score.
        guarded: steps that the guard changed.
    """

    task: str
    instructions: list[str] = field(default_factory=list)
    updates: int = 0
    rollouts: int = 0
    alerts: list[tuple[int, str, str]] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    guarded: int = 0


@dataclass
class Run:
    """Results of a run.

    Attributes:
        looks: before each task, every few updates, and after it.
        seconds: processor time without the pretraining of the base.
        commit: of the working tree.
    """

    arm: str
    seed: int
    looks: list[Look] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    seconds: float = 0.0
    commit: str = ""


@cached("fast_slow/{plan.setting.terms}/{arm}-{seed}.json")
def simulate(arm: str, seed: int, plan: Plan) -> Run:
    """Train one arm on its tasks, from the base of the seed."""
    world = VerifiableWorld()
    require_world(plan.setting.world, world.fingerprint)
    base, model = world.start(seed, BASES), world.start(seed, BASES)
    started, own = time.process_time(), ARMS[arm]
    run = Run(arm, seed, commit=commit())
    learner = Learner(world, base, model, own, plan.setting, seed)
    for task in own.tasks:
        run.stages.append(learner.learn(task, run.looks))
    run.seconds = time.process_time() - started
    return run


class Learner:
    """A model and its instructions, which learn one task after the other.

    Args:
        base: the model before all training; `model` is trained in place.
    """

    def __init__(
        self,
        world: VerifiableWorld,
        base: nn.Module,
        model: nn.Module,
        arm: Arm,
        setting: Setting,
        seed: int,
    ) -> None:
        self.world, self.base, self.model, self.arm = world, base, model, arm
        self.setting, self.seed = setting, seed
        self.meter = Meter(world, base, setting.sampled)
        self.instructions = [""]
        if arm.several:
            drawn = random.Random(seed).sample(world.sentences, setting.keep - 1)
            self.instructions += drawn

    def learn(self, task: str, looks: list[Look]) -> Stage:
        """Learn a task until the rollouts are spent; looks are appended."""
        own, stage = self.setting, Stage(task)
        updates = own.long if self.arm.long and task == self.arm.tasks[0] else own.updates
        budget = updates * own.rollouts
        habits = [self.world.brevity()] if task == "proxy" else []
        monitor = Monitor(self.meter.behaviors + habits, probe_every=own.probe_every, budget=None)
        guard = None
        if self.arm.guard:
            guard = AutoGuard(replay=SelfDistillationBuffer(self.world.pools()))
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                self.world, self.model, task, own, self.seed, updates, folder,
                [MonitorCallback(monitor, guard=guard)] if self.arm.weights else [],
            )  # fmt: skip
            fast = FastSlow(
                trainer,
                self.instructions,
                proposer=EditGrammar(self.world.sentences) if self.arm.text else None,
                every=own.every if self.arm.text else None,
                keep=own.keep,
                select=self.arm.text or "pareto",
                problems=own.cycle_problems,
                seed=self.seed,
            )

            def look(update: int) -> None:
                found = self.meter(self.model, fast.population, task, update, fast.rollouts)
                looks.append(found)

            look(0)
            if self.arm.weights:
                trainer.add_callback(_Along(look, own.look_every, lambda: fast.rollouts >= budget))
                trainer.train()
            else:
                step = own.look_every * own.rollouts
                for spent in range(step, budget + 1, step):
                    fast.evolve(spent)
                    look(0)
        self.instructions = list(fast.population)
        stage.instructions, stage.rollouts = self.instructions, fast.rollouts
        stage.updates = trainer.state.global_step
        stage.alerts = [(a.step, a.behavior, str(a.level)) for a in monitor.alerts]
        broken = monitor.broken() if self.arm.weights else {}
        stage.broken = {name: step for name, step in broken.items() if step is not None}
        stage.guarded = sum(action.applied for action in monitor.actions) if guard else 0
        if self.arm.weights and task != "proxy":
            stage.lost = self._lost(looks)
        return stage

    def _lost(self, looks: Sequence[Look]) -> dict[str, str]:
        first, last = looks[0], looks[-1]
        verdicts = {}
        for behavior in self.meter.behaviors:
            name = behavior.name
            if first.scores[name] - last.scores[name] < MIN_LOSS:
                continue
            others = [one for one in ("facts", "times") if one != name]
            found = recover(
                self.model,
                self.world.diagnosed(name, EXAMPLES),
                self.world.examples(name)[:EXAMPLES],
                reference=self.base,
                unrelated_examples=self.world.examples(others[0])[:EXAMPLES],
                seed=self.seed,
            )
            verdicts[name] = str(found.verdict)
        return verdicts


class _Along(TrainerCallback):
    """Looks every few updates and at the end, and ends the training when rollouts are spent."""

    def __init__(self, look: Callable[[int], None], every: int, spent: Callable[[], bool]) -> None:
        self.look, self.every, self.spent = look, every, spent

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look, or stop."""
        done = self.spent() or state.global_step >= state.max_steps
        if done or state.global_step % self.every == 0:
            self.look(state.global_step)
        control.should_training_stop = control.should_training_stop or self.spent()
