"""Error of storing protected gradients in fewer bits, or of some layers only.

    python benchmarks/gradient_storage.py toy [--seeds 3 --steps 40]
    python benchmarks/gradient_storage.py smollm2 --data ../shared/data/gsm8k_train.jsonl

Before each of the first steps of a new task, h_b is computed and stored in every form. After the
step, the predicted change ⟨h_b, Δθ⟩ of each form is compared with the realized change of the mean
margin, and with the prediction in float32. One row for each behavior and form: correlation and
slope (realized on predicted), largest error against float32 as a share of the largest prediction,
and bytes.
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
from riprap.behaviors import Behavior
from riprap.evaluation import ProbeResult, evaluate_batch, group_by_forward_pass, layer_names
from riprap.linalg import STORAGE_DTYPES, Vector, VectorStack, clone, subtract

SEED = 1000  # exploratory: no study confirms anything on it


@dataclass
class Changes:
    """Predicted and realized changes of the mean margin, step by step."""

    predicted: list[float] = field(default_factory=list)
    realized: list[float] = field(default_factory=list)
    bytes: int = 0


def storage_forms(
    model: nn.Module, parameters: Sequence[Tensor]
) -> dict[str, tuple[str, list[int]]]:
    """Return label → precision and indices of the stored parameters."""
    indices = list(range(len(parameters)))
    forms = {dtype: (dtype, indices) for dtype in STORAGE_DTYPES}
    layers = layer_names(model, list(parameters))
    stack = sorted({name for name in layers if name.rsplit(".", 1)[-1].isdigit()}, key=_number)
    for label, selected in (
        ("upper half of the layers", stack[len(stack) // 2 :]),
        ("lower half of the layers", stack[: len(stack) // 2]),
        ("one middle layer", stack[len(stack) // 2 :][:1]),
    ):
        forms[label] = ("float32", [i for i in indices if layers[i] in selected])
    return forms


def _number(name: str) -> int:
    return int(name.rsplit(".", 1)[-1])


def compare(case: Case, steps: int, seed: int) -> dict[tuple[str, str], Changes]:
    """Compare predicted and realized changes over the first steps, by behavior and form."""
    model, optimizer, batches = case.fresh(seed)
    model.train()
    behaviors = case.behaviors(model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    forms = storage_forms(model, parameters)
    changes: dict[tuple[str, str], Changes] = defaultdict(Changes)
    results = evaluate_probes(behaviors, model, parameters)
    for _ in track(range(steps), description="steps", transient=True):
        gradients = {
            name: result.gradient for name, result in results.items() if result.gradient is not None
        }
        before = clone(parameters)
        case.loss(model, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        update = subtract(parameters, before)
        after = evaluate_probes(behaviors, model, parameters)
        for form, (precision, selected) in forms.items():
            stack = VectorStack({n: _of(g, selected) for n, g in gradients.items()}, precision)
            for name, value in stack.inner_products(_of(update, selected)).items():
                margins, new_margins = results[name].margins, after[name].margins
                change = changes[name, form]
                change.predicted.append(value)
                change.realized.append(float(new_margins.mean() - margins.mean()))
                change.bytes = stack.nbytes // len(gradients)
        results = after
    return changes


def _of(vector: Vector, indices: Sequence[int]) -> Vector:
    return [vector[i] for i in indices]


def evaluate_probes(
    behaviors: Sequence[Behavior], model: nn.Module, parameters: Sequence[Tensor]
) -> dict[str, ProbeResult]:
    """Compute margins and gradients of all behaviors."""
    results: dict[str, ProbeResult] = {}
    for group in group_by_forward_pass(behaviors, model):
        results |= evaluate_batch(group, model, parameters)
    return results


def table(runs: Sequence[dict[tuple[str, str], Changes]]) -> str:
    """Return medians over runs, as a Markdown table."""
    lines = [
        "| behavior | storage | correlation | slope | error | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for name, form in runs[0]:
        rows = []
        for run in runs:
            change, exact = run[name, form], np.array(run[name, "float32"].predicted)
            predicted, realized = np.array(change.predicted), np.array(change.realized)
            fit = agreement(predicted, realized)
            error = np.abs(predicted - exact).max() / np.abs(exact).max()
            rows.append([fit["correlation"], fit["slope"], error, change.bytes])
        correlation, slope, error, size = np.median(rows, axis=0)
        numbers = f"{correlation:.3f} | {slope:.2f} | {error:.1%} | {size:,.0f}"
        lines.append(f"| {name} | {form} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=["toy", "smollm2"])
    parser.add_argument("--task", default="C", help="toy: null, C, C_disjoint or C_context")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k_train.jsonl"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    small = args.case == "toy"
    case = toy(args.task) if small else smollm2(args.data, {"refusal": 24})
    seeds = range(SEED, SEED + (args.seeds or (3 if small else 1)))
    print(table([compare(case, args.steps or (40 if small else 8), seed) for seed in seeds]))


if __name__ == "__main__":
    main()
