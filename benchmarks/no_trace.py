"""Compare training with and without a monitor, bit by bit, on the experiments' own models.

    python benchmarks/no_trace.py toy [--steps 100]
    python benchmarks/no_trace.py smollm2 --data ../shared/data/gsm8k_train.jsonl [--steps 5]

Compared are the trained weights, the state of the optimizer, and the generators of torch, numpy and
Python. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case, smollm2, toy

from riprap.monitor import Monitor

SEED = 1000


def state_after(case: Case, steps: int, monitored: bool) -> dict[str, Any]:
    """Train, and return everything that training changes."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    model, optimizer, batches = case.fresh(SEED)
    model.train()
    monitor = Monitor(case.behaviors(model)) if monitored else None
    torch.manual_seed(2)
    if monitor is not None:
        monitor.begin(model, optimizer)
    step = case.stepper(model, optimizer, batches)
    for _ in range(steps):
        step()
    if monitor is not None:
        monitor.end()
        print(f"probe evaluations: {sorted(next(iter(monitor.behavior_histories.values())).steps)}")
    state = optimizer.state_dict()["state"]
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "optimizer": [v for s in state.values() for v in s.values()],
        "torch generator": torch.get_rng_state(),
        "numpy generator": np.random.get_state()[1],
        "python generator": random.getstate(),
    }


def same(left: Any, right: Any) -> bool:
    """Compare tensors, arrays, lists of them, and plain values."""
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = toy("C") if arguments.case == "toy" else smollm2(arguments.data, rows=4, width=64)
    steps = arguments.steps or (100 if arguments.case == "toy" else 5)
    plain, monitored = (state_after(case, steps, kind) for kind in (False, True))
    is_same = {part: same(plain[part], monitored[part]) for part in plain}
    for part, equal in is_same.items():
        print(f"{part:18} {'bit-identical' if equal else 'DIFFERENT'}")
    raise SystemExit(0 if all(is_same.values()) else 1)


if __name__ == "__main__":
    main()
