"""Repair strategies: each applies its settings to the model, the mildest first, and undoes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riprap.diagnosis._interpolation import names_by_layer, path_to_reference, squared_norm
from riprap.diagnosis._weight_sources import (
    Reference,
    Weights,
    interpolate_,
    matching_names,
    reference_model,
    restore_weights,
)
from riprap.diagnosis.recovery import (
    Examples,
    learning_rates,
    train_steps,
    trainable_copy,
    trains_adapters,
)

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the path to the reference
FACTORS = (0.25, 0.5, 1.0, 2.0)  # λ of a task vector
CHANGED_SHARE = 0.5  # share of ‖θ − θ₀‖² in the most changed layers together


@dataclass(frozen=True)
class RepairState:
    """One setting of a repair strategy, applied to the model."""

    amount: float  # α, λ or steps, as `detail` says
    detail: str
    steps: int = 0  # optimizer steps on the examples so far


# Each call starts over with the same settings; closing the generator restores the model bit by bit.
RepairStrategy = Callable[[], Generator[RepairState, None, None]]


class MixedExamples(Examples):
    """Examples of several behaviors, learned together; each behavior has the same weight."""

    def __init__(self, pools: Mapping[str, Examples], count: int, seed: int) -> None:
        self.parts = [(pool, _draw_examples(pool, count, seed)) for pool in pools.values()]
        self.rows = [row for _, rows in self.parts for row in rows]

    def loss(self, model: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Compute the mean over behaviors of all their examples; `chosen` is ignored."""
        return torch.stack([pool.loss(model, rows) for pool, rows in self.parts]).mean()

    def backward(self, model: nn.Module, chosen: Sequence[int]) -> None:
        """Accumulate gradients behavior by behavior, to hold one graph in memory at a time."""
        for pool, rows in self.parts:
            (pool.loss(model, rows) / len(self.parts)).backward()


class UnlearningExamples(Examples):
    """Examples to unlearn: −log(1 − p) for each example whose loss is −log p.

    Source: unlikelihood, Welleck et al., 1908.04319, equation 4, for whole examples.
    """

    def __init__(self, parts: Sequence[tuple[Examples, list[int]]]) -> None:
        self.parts = parts
        self.rows = [row for _, rows in parts for row in rows]

    def loss(self, model: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Compute the mean over all examples; `chosen` is ignored."""
        losses = torch.cat([_per_example_losses(pool, model, rows) for pool, rows in self.parts])
        return -torch.log(-torch.expm1(-losses.clamp_min(1e-6))).mean()


def _per_example_losses(pool: Examples, model: nn.Module, rows: list[int]) -> Tensor:
    """Losses of single examples, shape (n,)."""
    if pool.behavior is not None:
        behavior = pool.behavior.subset([pool.rows[at] for at in rows])
        assert behavior.losses is not None
        return behavior.losses(model, behavior.probes)
    return torch.stack([pool.loss(model, [row]) for row in rows])


def _draw_examples(examples: Examples, count: int, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(len(examples))
    return [int(at) for at in order[:count]]


def few_shot(
    model: nn.Module, examples: MixedExamples, weights_on_disk: Weights | None
) -> list[RepairStrategy]:
    """Train a few steps on the examples, as in `recover`: one strategy per learning rate."""
    chosen = list(range(len(examples)))

    def strategy(learning_rate: float) -> Generator[RepairState, None, None]:
        with trainable_copy(model, weights_on_disk) as (parameters, adapters):
            for step in train_steps(model, parameters, adapters, examples, chosen, learning_rate):
                steps = f"{step} step{'s' * (step > 1)}"
                detail = f"{len(chosen)} examples, {steps}, learning rate {learning_rate:g}"
                yield RepairState(step, detail, step)

    return [partial(strategy, rate) for rate in learning_rates(trains_adapters(model))]


def interpolation(
    model: nn.Module, reference: Reference, weights_on_disk: Weights | None, most_changed_only: bool
) -> list[RepairStrategy]:
    """Interpolate to the reference, θ + α (θ₀ − θ): all weights, or the most changed layers.

    The most changed layers are the fewest with at least half of ‖θ − θ₀‖² together.
    Source: Wortsman et al., 2109.01903 (weights between two fine-tunings, WiSE-FT).
    """

    def strategy() -> Generator[RepairState, None, None]:
        with path_to_reference(model, reference, weights_on_disk) as path:
            groups = names_by_layer(model, path.names)
            layers = list(groups)
            if most_changed_only:
                changes = {
                    layer: sum(squared_norm(path.delta(name)[1]) for name in names)
                    for layer, names in groups.items()
                }
                layers = _most_changed(changes)
            names = [name for layer in layers for name in groups[layer]]
            which = f"{len(layers)} of {len(groups)} layers" if most_changed_only else "all weights"
            for alpha in ALPHAS:
                path.set_alpha(alpha, names)
                yield RepairState(alpha, f"α = {alpha:g}, {which}")

    return [strategy]


def _most_changed(changes: Mapping[str, float]) -> list[str]:
    """The fewest layers with `CHANGED_SHARE` of the change, in the order of the model."""
    order = sorted(changes, key=lambda layer: -changes[layer])
    cumulative = np.cumsum([changes[layer] for layer in order])
    count = int(np.searchsorted(cumulative, CHANGED_SHARE * cumulative[-1])) + 1
    return [layer for layer in changes if layer in order[:count]]


def checkpoint(
    model: nn.Module, name: str, weights: Weights, weights_on_disk: Weights | None
) -> RepairStrategy:
    """Go back to the weights of an earlier checkpoint."""

    def strategy() -> Generator[RepairState, None, None]:
        names = matching_names(model, weights)
        with restore_weights(model, weights_on_disk) as original:
            interpolate_(model, original, weights, 1.0, names)
            yield RepairState(1.0, name)

    return strategy


def task_vector(
    model: nn.Module, reference: Reference, examples: MixedExamples, weights_on_disk: Weights | None
) -> list[RepairStrategy]:
    """Subtract λ τ, where τ is the change of the reference that unlearns the examples.

    Task arithmetic subtracts the vector of an unwanted task (Ilharco et al., 2212.04089, section
    3). The unwanted task is to fail on the examples, so τ is the change of a copy of the reference
    that is trained to fail (`UnlearningExamples`), until the examples have less than even odds. τ
    contains nothing of the newly learned task.
    """

    def strategy() -> Generator[RepairState, None, None]:
        vector, steps = _unlearning_vector(model, reference, examples, weights_on_disk)
        parameters = dict(model.named_parameters())
        changed = [parameters[name] for name in vector]
        with restore_weights(model, weights_on_disk, changed) as original:
            for factor in FACTORS:
                with torch.no_grad():
                    for name, delta in vector.items():
                        start = original[name].to(parameters[name])
                        parameters[name].copy_(start - factor * delta())
                yield RepairState(factor, f"λ = {factor:g}", steps)

    return [strategy]


def _unlearning_vector(
    model: nn.Module, reference: Reference, examples: MixedExamples, weights_on_disk: Weights | None
) -> tuple[dict[str, Callable[[], Tensor]], int]:
    """τ by weight name, each computed when it is called, and the number of steps."""
    unlearning = UnlearningExamples(examples.parts)
    chosen = list(range(len(unlearning)))
    with (
        reference_model(model, reference, weights_on_disk) as start,
        trainable_copy(start) as (parameters, adapters),
    ):
        before = [] if adapters else [p.detach().clone() for p in parameters]
        rate, steps = learning_rates(adapters)[1], 0
        for step in train_steps(start, parameters, adapters, unlearning, chosen, rate):
            steps = step
            with torch.no_grad():
                if float(unlearning.loss(start, chosen)) < math.log(2):
                    break
        if adapters:
            return _adapter_deltas(start), steps
        names = {id(p): name for name, p in start.named_parameters()}
        pairs = zip(parameters, before, strict=True)
        return {names[id(now)]: (now.detach() - then).detach for now, then in pairs}, steps


def _adapter_deltas(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Change of each weight by fresh adapters, stored as its two factors."""
    deltas: dict[str, Callable[[], Tensor]] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if not hasattr(layer, "lora_A") or not len(layer.lora_A):
            continue
        (adapter,) = layer.lora_A
        left, right = (layer.lora_B[adapter].weight, layer.lora_A[adapter].weight)
        factors = left.detach().clone(), layer.scaling[adapter] * right.detach()
        transposed = bool(getattr(layer, "fan_in_fan_out", False))
        deltas[f"{name}.weight"] = partial(_low_rank_delta, *factors, transposed)
    return deltas


def _low_rank_delta(left: Tensor, right: Tensor, transposed: bool) -> Tensor:
    return (left @ right).T if transposed else left @ right


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights with fresh adapters merged, by their names without adapters."""
    deltas = {name: delta() for name, delta in _adapter_deltas(model).items()}
    merged = {}
    for name, part in model.named_parameters():
        if "lora_" not in name:
            plain = name.replace(".base_layer.", ".")
            delta = deltas.get(plain)
            merged[plain] = part.detach().clone() if delta is None else part.detach() + delta
    return merged
