"""A run of the experiment: one arm learns the tasks in sequence."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import TrainerCallback

from experiments.fast_slow.arms import ARMS, NEUTRAL, Arm
from experiments.fast_slow.measure import Measurement, Meter
from experiments.fast_slow.plan import Plan, Setting
from experiments.fast_slow.premise import best_instruction
from experiments.fast_slow.training import BASES, make_trainer
from experiments.harness.cache import cached
from experiments.harness.markdown import commit
from experiments.harness.plan import require_world
from experiments.worlds.verifiable import CONTRASTS, VerifiableWorld
from riprap.detectors import AlertPolicy
from riprap.diagnosis import recover
from riprap.fastslow import EditGrammar, FastSlow
from riprap.guards import GEM, AutoGuard, SelfDistillationBuffer
from riprap.integrations.hf import MonitorCallback
from riprap.monitor import Monitor
from riprap.types import Forecast

MIN_LOSS = 0.1  # of a behavior's score, from which the diagnosis asks what was lost
EXAMPLES = 16  # that it relearns from, at most


@dataclass
class Stage:
    """Results of one task.

    Attributes:
        instructions: in use at the end, the best first.
        updates, rollouts: of the task; rollouts of cycles included.
        rewards: TRL's own curve: mean reward of the rollouts of each update.
        alerts: step, behavior and level of each alert. Where the reward is the proxy, the monitor
            also watches the habit `brevity`.
        broken: step at which a behavior was first under its floor, by name.
        below: behaviors that were under their floor before the task.
        forecast: by name, first and last update of each period in which a break within the horizon
            was forecast; `horizon`: of the monitor, in updates.
        guarded: updates that the guard changed; `projected`: those of them with the projection,
            which reads the monitored probes.
    """

    task: str
    instructions: list[str] = field(default_factory=list)
    updates: int = 0
    rollouts: int = 0
    rewards: list[float] = field(default_factory=list)
    alerts: list[tuple[int, str, str]] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    below: list[str] = field(default_factory=list)
    forecast: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    horizon: int = 0
    guarded: int = 0
    projected: int = 0


@dataclass
class Run:
    """Results of a run.

    Attributes:
        measured: before each task, every few updates, and after it.
        lost: after all tasks, verdict of `diagnosis.recover` on each old behavior whose score is at
            least a tenth under the base's.
        seconds: processor time without the pretraining of the base.
        commit: of the working tree.
        policy: hash of the monitor's alert policy.
    """

    arm: str
    seed: int
    measured: list[Measurement] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    commit: str = ""
    policy: str = ""


@cached("fast_slow/{plan.setting.terms}/{policy.hash:.12}/{arm}-{seed}.json")
def simulate(arm: str, seed: int, plan: Plan, policy: AlertPolicy) -> Run:
    """Train one arm on its tasks, from the base of the seed, under a monitor with a policy."""
    world = VerifiableWorld()
    require_world(plan.setting.world, world.fingerprint)
    base, model = world.start(seed, BASES), world.start(seed, BASES)
    started, own = time.process_time(), ARMS[arm]
    run = Run(arm, seed, commit=commit(), policy=policy.hash or "")
    learner = Learner(world, base, model, own, plan.setting, seed, policy)
    for task in own.tasks:
        run.stages.append(learner.learn(task, run.measured))
    if own.weights and "proxy" not in own.tasks:
        run.lost = learner.lost(run.measured)
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
        policy: AlertPolicy,
    ) -> None:
        self.world, self.base, self.model, self.arm = world, base, model, arm
        self.setting, self.seed, self.policy = setting, seed, policy
        self.meter = Meter(world, base, setting.sampled)
        self.instructions = list(NEUTRAL) if arm.stay == "neutral" else [""]

    def learn(self, task: str, measured: list[Measurement]) -> Stage:
        """Learn a task until the rollouts are spent; measurements are appended."""
        own, stage = self.setting, Stage(task)
        updates = own.long if self.arm.long and task == self.arm.tasks[0] else own.updates
        budget = updates * own.rollouts
        if self.arm.stay == "told":
            self.instructions = [best_instruction(self.world, self.base, task)]
        habits = [self.meter.brevity] if task == "proxy" else []
        monitor = Monitor(
            self.meter.behaviors + habits, self.policy, probe_every=own.probe_every, budget=None
        )
        guard = None
        if self.arm.guard:
            guard = AutoGuard(replay=SelfDistillationBuffer(self.world.pools()))
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                self.world, self.model, task, own, self.seed, updates, folder,
                [MonitorCallback(monitor, guard=guard)] if self.arm.weights else [],
            )  # fmt: skip
            cycles = self.arm.select
            fast = FastSlow(
                trainer,
                self.instructions,
                proposer=EditGrammar(self.world.sentences) if cycles else None,
                every=own.every if cycles else None,
                keep=own.keep,
                select=cycles or "pareto",
                problems=own.cycle_problems,
                seed=self.seed,
            )

            def measure(update: int) -> None:
                now = self.meter(self.model, fast.population, task, update, fast.rollouts)
                measured.append(now)

            def along(update: int, due: bool) -> None:
                note_forecasts(stage, update, monitor.forecasts)
                if due:
                    measure(update)

            measure(0)
            if self.arm.weights:
                closely = own.closely if task == "proxy" else 1
                every = own.measure_every
                trainer.add_callback(_Along(along, every, closely, lambda: fast.rollouts >= budget))
                trainer.train()
            else:
                step = own.measure_every * own.rollouts
                for spent in range(step, budget + 1, step):
                    fast.evolve(spent)
                    measure(0)
        self.instructions = list(fast.population)
        stage.instructions, stage.rollouts = self.instructions, fast.rollouts
        stage.updates = trainer.state.global_step
        log = trainer.state.log_history
        stage.rewards = [float(entry["reward"]) for entry in log if "reward" in entry]
        if self.arm.weights:
            stage.alerts = [(a.step, a.behavior, str(a.level)) for a in monitor.alerts]
            stage.broken = {n: step for n, step in monitor.broken().items() if step is not None}
            stage.below = list(monitor.below_floor())
        acted = [action for action in monitor.actions if action.applied] if guard else []
        stage.guarded = len({action.step for action in acted})
        stage.projected = len({a.step for a in acted if a.guard.endswith(GEM.name)})
        return stage

    def lost(self, measured: Sequence[Measurement]) -> dict[str, str]:
        """Return what was lost of each behavior that scores less than at the start."""
        first, last = measured[0], measured[-1]
        verdicts = {}
        for name in first.scores:
            if first.scores[name] - last.scores[name] < MIN_LOSS:
                continue
            opposite = CONTRASTS.get(name)
            other = "times" if name == "facts" else "facts"
            found = recover(
                self.model,
                self.world.diagnosed(name, EXAMPLES),
                self.world.examples(name)[:EXAMPLES],
                reference=self.base,
                unrelated_examples=self.world.examples(other)[:EXAMPLES],
                contrast=self.world.diagnosed(opposite, EXAMPLES) if opposite else None,
                seed=self.seed,
            )
            verdicts[name] = str(found.verdict)
        return verdicts


def note_forecasts(stage: Stage, update: int, forecasts: Mapping[str, Forecast | None]) -> None:
    """Add an update to the periods in which breaks within the horizon are forecast."""
    for name, ahead in forecasts.items():
        if ahead is None:
            continue
        stage.horizon = ahead.horizon
        if ahead.median <= ahead.horizon:
            periods = stage.forecast.setdefault(name, [])
            if periods and periods[-1][1] == update - 1:
                periods[-1] = (periods[-1][0], update)
            else:
                periods.append((update, update))


class _Along(TrainerCallback):
    """Calls a function after each update, and ends the training when rollouts are spent.

    Args:
        note: gets the update, and whether it is to be measured: every few updates, at the end, and
            the first `closely` ones.
    """

    def __init__(
        self, note: Callable[[int, bool], None], every: int, closely: int, spent: Callable[[], bool]
    ) -> None:
        self.note, self.every, self.closely, self.spent = note, every, closely, spent

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the update, or stop."""
        done, step = self.spent() or state.global_step >= state.max_steps, state.global_step
        self.note(step, done or step % self.every == 0 or step <= self.closely)
        control.should_training_stop = control.should_training_stop or self.spent()
