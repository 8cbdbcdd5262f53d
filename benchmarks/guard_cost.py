"""Measure what a guard costs, in steps of plain training in the same process.

    python benchmarks/guard_cost.py [--rounds 8 --task C]

Setup: the toy world, three behaviors, a task that erases them, each guard at its default refresh. A
round is 20 steps, in which every protected gradient is recomputed once. Rounds of plain training,
of a monitor, and of a monitor with each guard are interleaved and compared round by round: medians
of the ratios, in this process's own time. `guard itself` is the time of the decision, including
SafeGrad's own passes. The rest is probe evaluations: for fresh protected gradients, and those that
the monitor adds when a behavior is about to break, which differ between runs. The start (OGD's is
the most expensive) is reported separately, in plain steps. With `--task null` nothing is erased,
and the row of AutoGuard is its cost while it is idle.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from cases import toy
from rich.progress import track

from experiments.worlds import ToyWorld
from riprap import guards
from riprap.guards import Guard, GuardView, Proposal
from riprap.monitor import Monitor

SEED = 1000
STEPS, WARM = 20, 2  # steps a round; warm-up rounds
GUARDS: dict[str, Callable[[], Guard]] = {
    "AGEM": guards.AGEM,
    "GEM": guards.GEM,
    "PCGrad": guards.PCGrad,
    "UPGrad": guards.UPGrad,
    "UpdateProjection": guards.UpdateProjection,
    "OGD": guards.OGD,
    "SafeGrad": guards.SafeGrad,
    "GPM": guards.GPM,
    "TwoSidedGPM": guards.TwoSidedGPM,
    "AutoGuard": lambda: guards.AutoGuard(replay=guards.SelfDistillationBuffer(ToyWorld().pools())),
}


class Run:
    """A model in training, with or without a monitor and a guard, to be timed in rounds."""

    def __init__(self, task: str, monitored: bool, guard: Guard | None) -> None:
        case = toy(task)
        self.model, optimizer, batches = case.fresh(SEED)
        self.model.train()
        self._step = case.stepper(self.model, optimizer, batches)
        self.seconds: list[float] = []
        self.own: list[float] = []
        self.own_before = 0.0  # of the warm-up rounds
        if guard is not None:
            for hook in ("on_gradients", "on_update"):
                setattr(guard, hook, self._timed(getattr(guard, hook)))
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

    def round(self) -> None:
        """Run one round of steps."""
        if len(self.seconds) == WARM:
            self.own_before = sum(self.own)
        begun = time.process_time()
        for _ in range(STEPS):
            self._step()
        self.seconds.append((time.process_time() - begun) / STEPS)

    def against(self, other: Run) -> float:
        """Return the median ratio of its rounds to another's, without the warm-up."""
        pairs = zip(self.seconds[WARM:], other.seconds[WARM:], strict=True)
        return statistics.median(own / plain for own, plain in pairs)

    def own_share(self, plain: Run) -> float:
        """Return the time of the guard itself, in plain steps."""
        steps = STEPS * len(self.seconds[WARM:])
        spent = sum(self.own) - self.own_before
        return spent / steps / statistics.median(plain.seconds[WARM:])

    @property
    def acted(self) -> float:
        """Share of the steps that the guard changed."""
        assert self.monitor is not None
        actions = self.monitor.actions
        return sum(action.applied for action in actions) / max(len(actions), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="C", help="C, C_disjoint, C_context or null")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    plain, watched = Run(args.task, False, None), Run(args.task, True, None)
    runs = {name: Run(args.task, True, make()) for name, make in GUARDS.items()}
    for _ in track(range(WARM + args.rounds), description="rounds", transient=True):
        for run in (plain, watched, *runs.values()):
            run.round()
    step = statistics.median(plain.seconds[WARM:])
    print("| guard | guard itself | step ÷ plain | step ÷ monitored | start | steps changed |")
    print("|---|---|---|---|---|---|")
    bare = f"{watched.against(plain):.2f} | 1 | {watched.start / step:.0f}"
    print(f"| none, monitor only | 0 | {bare} | |")
    for name, run in runs.items():
        cells = [f"{run.own_share(plain):.2f}", f"{run.against(plain):.2f}"]
        cells += [f"{run.against(watched):.2f}", f"{run.start / step:.0f}", f"{run.acted:.0%}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\nplain step: {1e3 * step:.1f} ms")


if __name__ == "__main__":
    main()
