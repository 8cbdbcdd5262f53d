"""What is lost by keeping protected gradients in fewer bits, or of some layers only.

    python benchmarks/gradient_storage.py toy [--seeds 3 --steps 40]
    python benchmarks/gradient_storage.py smollm2 --data ../shared/data/gsm8k_train.jsonl [--steps 8]

Before each of the first steps of a new task h_b is taken afresh and kept in every way; after it the
predicted change ⟨h_b, Δθ⟩ of each is compared with the realised change of the mean margin, and with
the prediction in float32. One row a behavior and way: correlation and slope (realised on
predicted), largest error against float32 as a share of the largest prediction, bytes kept.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from cases import Case, smollm2, toy
from rich.progress import track
from torch import Tensor, nn

from experiments.harness.interference_claim import agreement
from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.evaluation import layer_names
from riprap.linalg import STORAGE_DTYPES, VectorStack, Vector, clone, subtract

SEED = 1000  # exploratory: no study confirms anything on it


@dataclass
class Found:
    """What was predicted and what came, step by step."""

    predicted: list[float] = field(default_factory=list)
    realised: list[float] = field(default_factory=list)
    bytes: int = 0


def ways(model: nn.Module, parameters: Sequence[Tensor]) -> dict[str, tuple[str, list[int]]]:
    """How to keep a gradient: a precision, and of which parameters."""
    every = list(range(len(parameters)))
    found = {kept: (kept, every) for kept in STORAGE_DTYPES}
    layers = layer_names(model, list(parameters))
    stack = sorted({name for name in layers if name.rsplit(".", 1)[-1].isdigit()}, key=_number)
    for label, chosen in (
        ("upper half of the layers", stack[len(stack) // 2 :]),
        ("lower half of the layers", stack[: len(stack) // 2]),
        ("one middle layer", stack[len(stack) // 2 :][:1]),
    ):
        found[label] = ("float32", [i for i in every if layers[i] in chosen])
    return found


def _number(name: str) -> int:
    return int(name.rsplit(".", 1)[-1])


def compare(case: Case, steps: int, seed: int) -> dict[tuple[str, str], Found]:
    """Predictions of every way over the first steps, by behavior and way."""
    model, optimizer, batches = case.fresh(seed)
    model.train()
    behaviors = case.behaviors(model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = ways(model, parameters)
    found: dict[tuple[str, str], Found] = defaultdict(Found)
    looks = look(behaviors, model, parameters)
    for _ in track(range(steps), description="steps", transient=True):
        gradients = {name: one.gradient for name, one in looks.items() if one.gradient is not None}
        before = clone(parameters)
        case.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        update = subtract(parameters, before)
        after = look(behaviors, model, parameters)
        for way, (precision, chosen) in kept.items():
            stack = VectorStack({n: _of(g, chosen) for n, g in gradients.items()}, precision)
            for name, value in stack.inner_products(_of(update, chosen)).items():
                one = found[name, way]
                one.predicted.append(value)
                one.realised.append(float(after[name].margins.mean() - looks[name].margins.mean()))
                one.bytes = stack.nbytes // len(gradients)
        looks = after
    return found


def _of(vector: Vector, chosen: Sequence[int]) -> Vector:
    return [vector[i] for i in chosen]


def look(
    behaviors: Sequence[Behavior], model: nn.Module, parameters: Sequence[Tensor]
) -> dict[str, probing.ProbeResult]:
    """Fresh margins and gradients."""
    looks: dict[str, probing.ProbeResult] = {}
    for group in probing.group_by_forward_pass(behaviors, model):
        looks |= probing.evaluate_batch(group, model, parameters)
    return looks


def table(runs: Sequence[dict[tuple[str, str], Found]]) -> str:
    """Medians over runs, as Markdown."""
    lines = [
        "| behavior | kept | correlation | slope | error | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for name, way in runs[0]:
        rows = []
        for run in runs:
            one, exact = run[name, way], np.array(run[name, "float32"].predicted)
            predicted, realised = np.array(one.predicted), np.array(one.realised)
            agreed = agreement(predicted, realised)
            error = np.abs(predicted - exact).max() / np.abs(exact).max()
            rows.append([agreed["correlation"], agreed["slope"], error, one.bytes])
        correlation, slope, error, size = np.median(rows, axis=0)
        numbers = f"{correlation:.3f} | {slope:.2f} | {error:.1%} | {size:,.0f}"
        lines.append(f"| {name} | {way} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=["toy", "smollm2"])
    parser.add_argument("--task", default="C", help="toy: null, C, C_disjoint or C_context")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k_train.jsonl"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    small = asked.case == "toy"
    case = toy(asked.task) if small else smollm2(asked.data, {"refusal": 24})
    seeds = range(SEED, SEED + (asked.seeds or (3 if small else 1)))
    print(table([compare(case, asked.steps or (40 if small else 8), seed) for seed in seeds]))


if __name__ == "__main__":
    main()
