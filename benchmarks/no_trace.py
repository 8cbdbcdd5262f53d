"""Is training with a monitor bit-identical to training without it, on the studies' own models?

    python benchmarks/no_trace.py toy [--steps 100]
    python benchmarks/no_trace.py smollm2 --data ../shared/data/gsm8k_train.jsonl [--steps 5]

Compares trained weights, optimizer state and the generators of torch, numpy and Python. Exit code 1
where anything differs.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monitor_cost import Case, smollm2, toy

from riprap.monitor import Monitor


def after(case: Case, steps: int, monitored: bool) -> dict[str, Any]:
    """Everything that training left behind."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    model, optimizer, batches = case.fresh()
    model.train()
    monitor = Monitor(case.behaviors(model)) if monitored else None
    torch.manual_seed(2)
    if monitor is not None:
        monitor.begin(model, optimizer)
    for _ in range(steps):
        case.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    if monitor is not None:
        monitor.end()
        print(f"visits: {sorted(next(iter(monitor.behavior_histories.values())).steps)}")
    state = optimizer.state_dict()["state"]
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "optimizer": [v for s in state.values() for v in s.values()],
        "torch generator": torch.get_rng_state(),
        "numpy generator": np.random.get_state()[1],
        "python generator": random.getstate(),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=["toy", "smollm2"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k_train.jsonl"))
    parser.add_argument("--steps", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    case = toy("C") if asked.case == "toy" else smollm2(asked.data, rows=4, width=64)
    steps = asked.steps or (100 if asked.case == "toy" else 5)
    without, watched = after(case, steps, monitored=False), after(case, steps, monitored=True)
    verdicts = {what: same(without[what], watched[what]) for what in without}
    for what, equal in verdicts.items():
        print(f"{what:18} {'bit-identical' if equal else 'DIFFERENT'}")
    raise SystemExit(0 if all(verdicts.values()) else 1)


if __name__ == "__main__":
    main()
