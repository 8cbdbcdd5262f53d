"""Cost of a monitor, as ratios to a plain step in the same process.

    python benchmarks/monitor_cost.py toy
    python benchmarks/monitor_cost.py growth
    python benchmarks/monitor_cost.py smollm2 --data ../shared/data/gsm8k_train.jsonl --rounds 3

One thread, and processor seconds, so that other jobs on the machine disturb less. Each part (hooks,
a probe evaluation by forward passes, one with gradient refresh, the start) is timed in interleaved
rounds with plain steps; medians, in units of a plain step. The cost of whole runs is the sum of
these parts over the probe evaluations of a calm run at a cadence. `toy` also runs whole pairs, with
and without a monitor, end to end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from cases import PROBE_SETS, Case, smollm2, toy
from rich.progress import track

from riprap.behaviors import Behavior
from riprap.monitor import Cost, Monitor, measure_cost

SEED = 1000
CADENCES = (10, 20, 50)
RUNS = (300, 1000, 3000)
HEAD = (
    "| case | plain step, ms | hooks | probe evaluation | with gradient refresh | start "
    "| storage, MB | "
    + " | ".join(f"calm, every {every}" for every in CADENCES)
    + " | "
    + " | ".join(f"{steps} steps" for steps in RUNS)
    + " |"
)


def row(label: str, cost: Cost) -> str:
    """Return one line of the table; whole runs are at the default cadence, every 20 steps."""
    parts = [cost.hook_seconds, cost.forward_seconds, cost.refresh_seconds, cost.start_seconds]
    cells = [f"{part / cost.step_seconds:.3f}" for part in parts]
    cells += [f"{cost.memory_bytes / 1e6:.1f}"]
    cells += [f"{cost.calm_ratio(every):.3f}" for every in CADENCES]
    cells += [f"{cost.run_ratio(20, steps):.3f}" for steps in RUNS]
    return f"| {label} | {1e3 * cost.step_seconds:.1f} | " + " | ".join(cells) + " |"


def cost_of(case: Case, count: int | None, probes: int | None, rounds: int) -> Cost:
    """Measure the cost for the first `count` behaviors, with at most `probes` probes each."""
    model, optimizer, batches = case.fresh(SEED)
    model.train()
    behaviors = _some(case.behaviors(model)[:count], probes)
    step = case.stepper(model, optimizer, batches)
    return measure_cost(Monitor(behaviors), model, optimizer, step, rounds, clock=time.process_time)


def _some(behaviors: list[Behavior], probes: int | None) -> list[Behavior]:
    if probes is None:
        return behaviors
    return [b.subset(list(range(min(probes, len(b.probes))))) for b in behaviors]


def variants(name: str, data: Path) -> Iterator[tuple[str, Case, int | None, int | None]]:
    """Yield label, case, number of behaviors and number of probes of each row."""
    if name == "growth":
        for hidden, layers in ((64, 2), (160, 3), (320, 5), (640, 6)):
            size = toy(hidden=hidden, layers=layers, feed_forward=2 * hidden, heads=4)
            count = sum(p.numel() for p in size.fresh(SEED)[0].parameters())
            yield f"world model, {count / 1e6:.1f} M parameters", size, None, None
        return
    case = toy() if name == "toy" else smollm2(data)
    most = 3 if name == "toy" else len(PROBE_SETS)
    for count in (most, *range(1, most)) if name == "toy" else (most, 2):
        yield f"{name}, {count} behaviors", case, count, None
    yield f"{name}, {most} behaviors, at most 12 probes each", case, most, 12


def whole(case: Case, steps: int, monitored: bool) -> float:
    """Measure the processor seconds of a whole run."""
    model, optimizer, batches = case.fresh(SEED)
    model.train()
    monitor = Monitor(case.behaviors(model)) if monitored else None
    step = case.stepper(model, optimizer, batches)
    step()
    start = time.process_time()
    if monitor is not None:
        monitor.begin(model, optimizer)
    for _ in range(steps):
        step()
    if monitor is not None:
        monitor.end()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=["toy", "growth", "smollm2"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k_train.jsonl"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pairs", type=int, default=5, help="toy: whole runs of 1000 steps")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(HEAD, "|---" * (HEAD.count("|") - 1) + "|", sep="\n")
    for label, case, count, probes in variants(args.case, args.data):
        print(row(label, cost_of(case, count, probes, args.rounds)), flush=True)
    if args.case == "toy":
        pairs = track(range(args.pairs), description="whole runs", transient=True)
        ratios = [whole(toy(), 1000, True) / whole(toy(), 1000, False) for _ in pairs]
        print(f"\nwhole runs of 1000 steps, with ÷ without: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
