"""Rows `guards` of `run.py`: what each guard costs at its defaults.

On the toy while a new task erases its behaviors; on the toy while nothing is lost; and on a plain
Llama of 3 M parameters, also calm. A round is 20 steps: each protected gradient is recomputed once
in it. Rounds of plain training, of a monitor, and of a monitor with each guard are interleaved; a
row shows the ratios to the monitor's round beside it. `itself` is the time of the guard's own
hooks, in plain steps; the rest is probe evaluations for fresh protected gradients, and the copies
that updates need. `memory` is the peak of a monitored run of some steps with the guard, above that
of one without it, in processes that start alike.

A guard that waits for a loss is idle where nothing is lost. Its cost is far below the noise of a
round, and is taken from inside of the step: the time in all hooks, with it and without it, and of
its checkpoints, divided by the steps between two of them.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from cases import Case, LlamaSize, llama, toy
from monitor_cost import HookClock
from suite import Asked, Row, peak_above_start, processor_seconds
from torch import Tensor

from experiments.worlds import ToyWorld
from riprap import guards
from riprap.behaviors import Behavior
from riprap.guards import Guard, GuardView, Proposal
from riprap.monitor import Monitor

SEED = 1000
STEPS, WARM = 20, 1  # steps a round; warm-up rounds
MEMORY_STEPS = 3
IDLE_AIM = 1.005
SMALL = LlamaSize(
    layers=4, vocabulary=512, rank=None, checkpointing=False, rows=8, width=32, n_behaviors=3,
    probes=12, probe_width=16,
)  # fmt: skip
IDLE = frozenset(
    {"AutoGuard", "AdaptiveReplay", "Rollback", "OnAlert(AGEM)"}
)  # guards that do nothing in a calm run


@dataclass
class Setting:
    """A case, with the old examples that guards replay.

    Attributes:
        pools: other inputs of the behaviors.
        batches: old batches, as arguments of the model.
        width: width of the hidden states.
        only: names of the guards that are measured; empty: all.
    """

    case: Case
    pools: Callable[[], list[Behavior]]
    batches: list[dict[str, Tensor]]
    width: int
    only: frozenset[str] = frozenset()


def settings() -> dict[str, Setting]:
    """Return the two cases."""
    made = torch.Generator().manual_seed(2)

    def batches(vocabulary: int, width: int) -> list[dict[str, Tensor]]:
        ids = [torch.randint(vocabulary, (16, width), generator=made) for _ in range(4)]
        return [{"input_ids": one, "labels": one} for one in ids]

    def pools() -> list[Behavior]:
        shape = (64, SMALL.probe_width)
        ids = [torch.randint(SMALL.vocabulary, shape, generator=made) for _ in range(3)]
        return [Behavior.next_token(f"b{i}", one, one[:, 0]) for i, one in enumerate(ids)]

    world = ToyWorld()
    small = Setting(llama(SMALL), pools, batches(SMALL.vocabulary, 16), SMALL.hidden)
    old, hidden = batches(len(world.config.vocabulary), 8), world.config.hidden
    return {
        "toy, behaviors erased": Setting(toy("C"), world.pools, old, hidden),
        "toy, nothing lost": Setting(toy(), world.pools, old, hidden, IDLE),
        "3 M Llama": small,
    }


def all_guards(setting: Setting) -> dict[str, Callable[[], Guard]]:
    """Return a maker of each guard, at its defaults where it has them."""
    batches, pools = setting.batches, setting.pools
    earlier = {"model.layers.0.self_attn.q_proj.weight": torch.randn(8, setting.width)}

    def buffer() -> guards.SelfDistillationBuffer:
        return guards.SelfDistillationBuffer(pools())

    return {
        "AGEM": guards.AGEM,
        "GEM": guards.GEM,
        "PCGrad": guards.PCGrad,
        "UPGrad": guards.UPGrad,
        "UpdateProjection": guards.UpdateProjection,
        "OGD": guards.OGD,
        "SafeGrad": guards.SafeGrad,
        "GPM": guards.GPM,
        "TwoSidedGPM": guards.TwoSidedGPM,
        "L2SP": guards.L2SP,
        "EWC": guards.EWC,
        "OnlineEWC": guards.OnlineEWC,
        "SI": guards.SI,
        "MAS": guards.MAS,
        "KL": guards.KL,
        "ConstrainedTokens": lambda: guards.ConstrainedTokens(batches),
        "FeatureAnchor": guards.FeatureAnchor,
        "OLoRA": lambda: guards.OLoRA(earlier=[earlier]),
        "Replay": lambda: guards.Replay(batches),
        "Replay of a buffer": lambda: guards.Replay(buffer()),
        "AdaptiveReplay": lambda: guards.AdaptiveReplay(buffer()),
        "Lisa": lambda: guards.Lisa(batches),
        "Freeze": lambda: guards.Freeze(layers=1),
        "Clip": lambda: guards.Clip(1.0),
        "EMA": guards.EMA,
        "Rollback": guards.Rollback,
        "OnAlert(AGEM)": lambda: guards.OnAlert(guards.AGEM()),
        "AutoGuard": lambda: guards.AutoGuard(replay=buffer()),
    }


class Run:
    """A model in training, with or without a monitor and a guard, to be timed in rounds."""

    def __init__(self, case: Case, monitored: bool, guard: Guard | None) -> None:
        self.model, optimizer, batches = case.fresh(SEED)
        self.model.train()
        self._step, self.guard = case.stepper(self.model, optimizer, batches), guard
        self.clock = HookClock(optimizer)
        self.hooks: list[float] = []  # seconds in the hooks of a step, median of each round
        self.seconds: list[float] = []
        self.own: list[float] = []
        self.own_before = 0.0  # of the warm-up rounds
        for leaf in [] if guard is None else guard.flatten():
            for hook, read in (
                ("on_gradients", leaf.reads_gradients),
                ("on_update", leaf.reads_updates),
            ):
                if read:
                    setattr(leaf, hook, self._timed(getattr(leaf, hook)))
        self.monitor = Monitor(case.behaviors(self.model)) if monitored else None
        begun = time.process_time()
        if self.monitor is not None:
            self.monitor.begin(self.model, optimizer, guard)
        self.start = time.process_time() - begun

    def _timed(self, hook: Callable[[GuardView], Proposal | None]) -> Any:
        def timed(view: GuardView) -> Proposal | None:
            begun = time.process_time()
            try:
                return hook(view)
            finally:
                self.own.append(time.process_time() - begun)

        return timed

    def round(self, steps: int = STEPS) -> None:
        """Run one round of steps."""
        if len(self.seconds) == WARM:
            self.own_before = sum(self.own)
        begun, in_hooks = time.process_time(), []
        for _ in range(steps):
            self.clock.last()
            self._step()
            in_hooks.append(self.clock.seconds)
        self.seconds.append((time.process_time() - begun) / steps)
        self.hooks.append(statistics.median(in_hooks))  # most steps have no evaluation

    def against(self, other: Run) -> list[float]:
        """Return the ratios of its rounds to another's, without the warm-up."""
        pairs = zip(self.seconds[WARM:], other.seconds[WARM:], strict=True)
        return [own / plain for own, plain in pairs]

    def own_share(self, plain: Run) -> float:
        """Return the time of the guard itself, in plain steps."""
        steps = STEPS * len(self.seconds[WARM:])
        spent = sum(self.own) - self.own_before
        return spent / steps / statistics.median(plain.seconds[WARM:])

    def idle_ratio(self, watched: Run, plain: Run) -> list[float]:
        """Return, for each round, what an idle guard adds to a monitored step, as a ratio."""
        rollback = next((r for r in self.guard.flatten() if isinstance(r, guards.Rollback)), None)  # type: ignore[union-attr]
        saving = 0.0
        if rollback is not None:
            saving = processor_seconds(rollback._training.capture) / rollback.every
        rounds = zip(self.hooks, watched.hooks, plain.seconds, strict=True)
        found = [1 + (own - alone + saving) / (step + alone) for own, alone, step in rounds]
        return found[WARM:]

    @property
    def changed(self) -> float:
        """Share of the steps that the guard changed."""
        assert self.monitor is not None
        steps = {action.step for action in self.monitor.actions if action.applied}
        return len(steps) / (STEPS * len(self.seconds))


def rows(asked: Asked) -> Iterator[Row]:
    """Yield the rows of the group `guards`; its cases are names of guards."""
    quiet = contextlib.redirect_stderr(io.StringIO())
    for label, setting in settings().items():
        wanted = [n for n in setting.only or all_guards(setting) if asked.wants(n)]
        makers = {n: make for n, make in all_guards(setting).items() if n in wanted}
        asked.progress(f"guards on the {label}: memory")  # first, while this process is small
        memory = _memory(setting.case, lambda: None)
        extra = {}
        for name, make in list(makers.items()):
            try:
                extra[name] = (_memory(setting.case, make) - memory) / 1e6
            except RuntimeError as error:
                asked.progress(f"{name} on the {label} is left out: {error}")
                del makers[name]
        asked.progress(f"guards on the {label}: start")
        with quiet:
            plain, watched = Run(setting.case, False, None), Run(setting.case, True, None)
            runs = {name: Run(setting.case, True, make()) for name, make in makers.items()}
        for index in range(WARM + (3 if asked.quick else 10)):
            asked.progress(f"guards on the {label}: round {index + 1} of {len(runs) + 2} runs")
            with quiet:
                for run in (plain, watched, *runs.values()):
                    run.round()
        step = statistics.median(plain.seconds[WARM:])
        values = watched.against(plain)
        note = f"÷ plain; start {watched.start / step:.0f} steps; plain step {1e3 * step:.0f} ms"
        yield Row("guards", f"{label}: monitor alone", values, note=note)
        for name, run in runs.items():
            begun = max(run.start - watched.start, 0) / step
            note = (
                f"÷ monitor; itself {run.own_share(plain):.3f}; start +{begun:.0f} steps; memory "
                f"{extra[name]:+.0f} MB; {run.changed:.0%} of steps changed"
            )
            if name in IDLE and "erased" not in label:
                values = run.idle_ratio(watched, plain)
                yield Row("guards", f"{label}: {name}, idle", values, None, IDLE_AIM, note)
            else:
                yield Row("guards", f"{label}: {name}", run.against(watched), note=note)


def _memory(case: Case, make: Callable[[], Guard | None]) -> int:
    def train() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            Run(case, True, make()).round(MEMORY_STEPS)

    return peak_above_start(train)
