"""Ways to repair a model: each leads it from place to place, the gentlest first, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riprap.diagnosis._interpolation import names_by_layer, squared_norm, path_to_reference
from riprap.diagnosis._weight_sources import Reference, Weights, reference_model, matching_names, restore_weights, interpolate_
from riprap.diagnosis.recovery import Examples, trainable_copy, trains_adapters, learning_rates, train_steps

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the way to the reference
FACTORS = (0.25, 0.5, 1.0, 2.0)  # λ of a task vector
CHANGED_SHARE = 0.5  # share of ‖θ − θ₀‖² that the layers which moved most hold together


@dataclass(frozen=True)
class RepairState:
    """Where a way has led the model.

    Attributes:
        amount: share of the way, λ, or steps; what it is, `detail` says.
        steps: optimizer steps on the examples so far.
    """

    amount: float
    detail: str
    steps: int = 0


# Begun anew it leads through the same places; closed, the model is bit by bit as it was.
RepairStrategy = Callable[[], Generator[RepairState, None, None]]


class MixedExamples(Examples):
    """Examples of several behaviours, learned together; each behaviour weighs alike."""

    def __init__(self, parts: Mapping[str, Examples], count: int, seed: int) -> None:
        self.parts = [(part, _draw_examples(part, count, seed)) for part in parts.values()]
        self.rows = [row for _, rows in self.parts for row in rows]

    def loss(self, model: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Mean over behaviours; all their examples, whatever is chosen."""
        return torch.stack([part.loss(model, rows) for part, rows in self.parts]).mean()

    def backward(self, model: nn.Module, chosen: Sequence[int]) -> None:
        """Behaviour by behaviour, so that only one is held in memory."""
        for part, rows in self.parts:
            (part.loss(model, rows) / len(self.parts)).backward()


class UnlearningExamples(Examples):
    """The same examples to be unlearned: −log(1 − p) for each whose loss is −log p.

    Source: unlikelihood, Welleck et al., 1908.04319, equation 4, for whole examples.
    """

    def __init__(self, parts: Sequence[tuple[Examples, list[int]]]) -> None:
        self.parts = parts
        self.rows = [row for _, rows in parts for row in rows]

    def loss(self, model: nn.Module, chosen: Sequence[int]) -> Tensor:
        """Mean over all examples, whatever is chosen."""
        found = torch.cat([_per_example_losses(part, model, rows) for part, rows in self.parts])
        return -torch.log(-torch.expm1(-found.clamp_min(1e-6))).mean()


def _per_example_losses(part: Examples, model: nn.Module, rows: list[int]) -> Tensor:
    """Losses of single examples, shape (n,)."""
    if part.behavior is not None:
        own = part.behavior.subset([part.rows[at] for at in rows])
        assert own.losses is not None
        return own.losses(model, own.probes)
    return torch.stack([part.loss(model, [row]) for row in rows])


def _draw_examples(examples: Examples, count: int, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(len(examples))
    return [int(at) for at in order[:count]]


def few_shot(model: nn.Module, examples: MixedExamples, weights_on_disk: Weights | None) -> list[RepairStrategy]:
    """A few steps on examples, on a copy: one way a rate, as `refresh` declares them."""
    chosen = list(range(len(examples)))

    def way(rate: float) -> Generator[RepairState, None, None]:
        with trainable_copy(model, weights_on_disk) as (parameters, adapters):
            for step in train_steps(model, parameters, adapters, examples, chosen, rate):
                detail = f"{len(chosen)} examples, {step} step{'s' * (step > 1)}, rate {rate:g}"
                yield RepairState(step, detail, step)

    return [lambda rate=rate: way(rate) for rate in learning_rates(trains_adapters(model))]  # type: ignore[misc]


def interpolation(
    model: nn.Module, reference: Reference, weights_on_disk: Weights | None, most_changed_only: bool
) -> list[RepairStrategy]:
    """θ_t + α (θ₀ − θ_t): of all weights, or of the layers that moved most.

    Those are the layers with the largest ‖θ − θ₀‖² that hold at least half of it together.
    Source: Wortsman et al., 2109.01903 (weights between two fine-tunings, WiSE-FT).
    """

    def way() -> Generator[RepairState, None, None]:
        with path_to_reference(model, reference, weights_on_disk) as there:
            groups = names_by_layer(model, there.names)
            chosen = list(groups)
            if most_changed_only:
                chosen = _most_changed({k: _squared_change(there, own) for k, own in groups.items()})
            names = [name for layer in chosen for name in groups[layer]]
            which = f"{len(chosen)} of {len(groups)} layers" if most_changed_only else "all weights"
            for share in ALPHAS:
                there.set_alpha(share, names)
                yield RepairState(share, f"α = {share:g}, {which}")

    return [way]


def _squared_change(there: Any, names: list[str]) -> float:
    return sum(squared_norm(there.change(name)[1]) for name in names)


def _most_changed(sizes: Mapping[str, float]) -> list[str]:
    """The fewest layers that hold the share `MOVED`, in the model's order."""
    order = sorted(sizes, key=lambda layer: -sizes[layer])
    held = np.cumsum([sizes[layer] for layer in order])
    most = order[: int(np.searchsorted(held, CHANGED_SHARE * held[-1])) + 1]
    return [layer for layer in sizes if layer in most]


def checkpoint(model: nn.Module, name: str, weights: Weights, weights_on_disk: Weights | None) -> RepairStrategy:
    """Back to the weights of an earlier checkpoint."""

    def way() -> Generator[RepairState, None, None]:
        names = matching_names(model, weights)
        with restore_weights(model, weights_on_disk) as here:
            interpolate_(model, here, weights, 1.0, names)
            yield RepairState(1.0, name)

    return way


def task_vector(
    model: nn.Module, reference: Reference, examples: MixedExamples, weights_on_disk: Weights | None
) -> list[RepairStrategy]:
    """θ_t − λ τ, where τ is what unlearning the examples does to the reference.

    Task arithmetic subtracts the vector of an unwanted task (Ilharco et al., 2212.04089,
    section 3). What is unwanted here is that the examples are no longer done, so that τ is the
    change of a copy of the reference that is trained not to do them (`Opposite`), up to where it
    gives them less than even odds. τ knows nothing of what was newly learned.
    """

    def way() -> Generator[RepairState, None, None]:
        vector, steps = _unlearning_vector(model, reference, examples, weights_on_disk)
        own = dict(model.named_parameters())
        with restore_weights(model, weights_on_disk, [own[name] for name in vector]) as here:
            for factor in FACTORS:
                with torch.no_grad():
                    for name, change in vector.items():
                        own[name].copy_(here[name].to(own[name]) - factor * change())
                yield RepairState(factor, f"λ = {factor:g}", steps)

    return [way]


def _unlearning_vector(
    model: nn.Module, reference: Reference, examples: MixedExamples, weights_on_disk: Weights | None
) -> tuple[dict[str, Callable[[], Tensor]], int]:
    """τ by the names of weights, each worked out when asked for, and the steps taken."""
    opposite = UnlearningExamples(examples.parts)
    everyone = list(range(len(opposite)))
    with reference_model(model, reference, weights_on_disk) as start, trainable_copy(start) as (parameters, adapters):
        before = [] if adapters else [p.detach().clone() for p in parameters]
        rate, taken = learning_rates(adapters)[1], 0
        for step in train_steps(start, parameters, adapters, opposite, everyone, rate):
            taken = step
            with torch.no_grad():
                if float(opposite.loss(start, everyone)) < math.log(2):
                    break
        if adapters:
            return _adapter_deltas(start), taken
        names = {id(p): name for name, p in start.named_parameters()}
        pairs = zip(parameters, before, strict=True)
        changes = {names[id(now)]: (now.detach() - then) for now, then in pairs}
        return {n: (lambda change=change: change) for n, change in changes.items()}, taken  # type: ignore[misc]


def _adapter_deltas(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """The change of each weight under fresh adapters, kept as its two factors."""
    found: dict[str, Callable[[], Tensor]] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if not hasattr(layer, "lora_A") or not len(layer.lora_A):
            continue
        (adapter,) = layer.lora_A
        left, right = (layer.lora_B[adapter].weight, layer.lora_A[adapter].weight)
        found[f"{name}.weight"] = _low_rank_delta(
            left.detach().clone(),
            layer.scaling[adapter] * right.detach(),
            bool(getattr(layer, "fan_in_fan_out", False)),
        )
    return found


def _low_rank_delta(left: Tensor, right: Tensor, turned: bool) -> Callable[[], Tensor]:
    return lambda: (left @ right).T if turned else left @ right


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights with fresh adapters merged into them, by their names without adapters."""
    merged = {name: change() for name, change in _adapter_deltas(model).items()}
    found = {}
    for name, part in model.named_parameters():
        if "lora_" not in name:
            plain = name.replace(".base_layer.", ".")
            change = merged.get(plain)
            found[plain] = part.detach().clone() if change is None else part.detach() + change
    return found
