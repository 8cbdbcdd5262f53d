"""Leads and false alarms of the default monitor with its budget, beside those without a budget.

    python benchmarks/detectors_budget.py --out results/cost/detectors_budget.jsonl
    python benchmarks/detectors_budget.py --seeds exploratory --out /tmp/found.jsonl

The runs of the experiment `detectors`: the same world, policy, tasks and seeds. Each is trained
twice, bit for bit alike: under the monitor of that experiment (no budget, interference at every
step; what the policy does not read is left out) and under the default one. So that results do not
depend on the machine, the budget's clock counts the tokens that pass through the model, three times
where a gradient is computed.

"No worse" is declared so, for `warning` and for `critical`: no more null runs with an alert; no
fewer breaks announced at least one step before; and a median difference of paired leads of at least
−1 step. Runs that are in the file already are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.detectors.plan import NULL, Plan
from experiments.harness.preregistration import Preregistration
from experiments.harness.recorded_run import train_monitored
from experiments.worlds import ToyWorld
from riprap import Monitor, signals
from riprap.detectors import score
from riprap.types import Level

MODES = ("before", "budget")
LEVELS = (Level.WARNING, Level.CRITICAL)


class TokenClock:
    """Counts the tokens that pass through a model; a pass with a gradient counts three times."""

    def __init__(self, model: nn.Module) -> None:
        self.now = 0.0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self.now += ids.numel() * (3 if torch.is_grad_enabled() else 1)

    def __call__(self) -> float:
        return self.now


def run(
    world: ToyWorld, mode: str, task: str, seed: int, plan: Plan, policy: Any
) -> dict[str, Any]:
    """Train one run under one monitor; return its alerts, its breaks and what it cost."""
    if mode == "before":
        with tempfile.TemporaryDirectory() as folder:
            made: list[Monitor] = []
            margins = train_monitored(
                world,
                task,
                seed,
                Path(folder) / "run",
                policy,
                steps=plan.steps,
                every=plan.every,
                signals=[signals.Interference(every_step=True)],
                on_monitor=made.append,
            )
        monitor = made[0]
        floors = {b.name: b.floor for b in monitor.behaviors}
        broke = {name: _first_under(own, floors[name]) for name, own in margins.items()}
        return _found(monitor) | {"broke": broke}
    model = world.start(seed)
    optimizer, batches = world.optimizer(model), world.batches(task, seed=seed)
    monitor = Monitor(world.behaviors(), policy=policy, probe_every=plan.every)
    monitor.use_clock(TokenClock(model))
    torch.manual_seed(seed)
    with monitor.watch(model, optimizer):
        for _ in range(plan.steps):
            world.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return _found(monitor) | {"share": monitor._run.meter.share}


def _first_under(margins: np.ndarray, floor: float) -> int | None:
    return next((step for step, own in enumerate(margins) if score(own) < floor), None)


def _found(monitor: Monitor) -> dict[str, Any]:
    evaluations = {name: len(h.steps) for name, h in monitor.behavior_histories.items()}
    alerts = [(a.step, a.behavior, str(a.level), a.detector) for a in monitor.alerts]
    return {"alerts": alerts, "evaluations": evaluations, "counts": monitor._run.meter.counts}


def first_alerts(alerts: Iterable[Any], level: Level) -> dict[str, int]:
    """Return the first alert of a level or above, by behavior."""
    first: dict[str, int] = {}
    for step, name, own, _ in alerts:
        if Level(own).rank >= level.rank:
            first[name] = min(step, first.get(name, step))
    return first


def table(rows: list[dict[str, Any]]) -> str:
    """Return the comparison as Markdown."""
    by_run = {(r["mode"], r["task"], r["seed"]): r for r in rows}
    runs = sorted({(r["task"], r["seed"]) for r in rows})
    both = [run for run in runs if all((mode, *run) in by_run for mode in MODES)]
    lines = [
        "| level | monitor | null runs with an alert | breaks announced ≥ 1 step before "
        "| lead, median [least, most] | paired difference of leads, median [least, most] |",
        "|---|---|---|---|---|---|",
    ]
    for level in LEVELS:
        leads: dict[str, dict[Any, int]] = {mode: {} for mode in MODES}
        alarms = dict.fromkeys(MODES, 0)
        breaks = nulls = 0
        for task, seed in both:
            broke = by_run["before", task, seed]["broke"]
            nulls += task == NULL
            for mode in MODES:
                first = first_alerts(by_run[mode, task, seed]["alerts"], level)
                alarms[mode] += task == NULL and bool(first)
                for name, at in broke.items():
                    if task != NULL and at is not None and name in first:
                        leads[mode][task, seed, name] = at - first[name]
            breaks += sum(at is not None for at in broke.values()) if task != NULL else 0
        pairs = [
            leads["budget"][key] - lead
            for key, lead in leads["before"].items()
            if key in leads["budget"]
        ]
        for mode in MODES:
            own = list(leads[mode].values())
            announced = sum(lead >= 1 for lead in own)
            paired = _spread(pairs) if mode == "budget" else ""
            lines.append(
                f"| {level} | {mode} | {alarms[mode]} of {nulls} | {announced} of {breaks} | "
                f"{_spread(own)} | {paired} |"
            )
    shares = [r["share"] for r in rows if r["mode"] == "budget"]
    counts = {
        m: np.mean([np.mean(list(r["evaluations"].values())) for r in rows if r["mode"] == m])
        for m in MODES
    }
    lines.append("")
    lines.append(
        f"Cost with the budget, in passes over tokens: {_spread(shares, 3)} of training. "
        f"Probe evaluations, a run: {counts['before']:.0f} before, "
        f"{counts['budget']:.0f} with the budget."
    )
    return "\n".join(lines)


def _spread(values: list[Any], digits: int = 0) -> str:
    if not values:
        return "–"
    return f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a run")
    parser.add_argument("--seeds", choices=["recorded", "exploratory", "fresh"], default="recorded")
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy = Preregistration.named("detectors")
    plan, world = Plan.of(policy), ToyWorld()
    jobs = plan.runs()
    if args.seeds == "exploratory":
        jobs = [(task, seed) for seed in (1000, 1001) for task in (*plan.conditions, NULL)]
    if args.seeds == "fresh":
        jobs = [(task, seed) for seed in range(144, 148) for task in plan.conditions]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if args.out.exists()
        else []
    )
    done = {(row["mode"], row["task"], row["seed"]) for row in rows}
    for task, seed in [] if args.table else jobs:
        for mode in MODES:
            if (mode, task, seed) in done:
                continue
            row = {"mode": mode, "task": task, "seed": seed}
            row |= run(world, mode, task, seed, plan, policy)
            rows.append(row)
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(mode, task, seed, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
