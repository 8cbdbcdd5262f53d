"""Where a behaviour's margins are sensitive: how many directions, which layers, which tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Estimate, Progress
from riprap.errors import BehaviorError
from riprap.evaluation import gradient_of, layer_names, compute_margins, preserve_training_state, layer_stacks
from riprap.linalg import inner_products

Array = NDArray[np.float64]
MAX_GRADIENT_ELEMENTS = 2**29  # elements of all probes' gradients that are held at a time: 2 GB in float32


def participation_ratio(gramian: Array) -> float:
    """(Σ σ²)² / Σ σ⁴ of a Jacobian with this Gramian: its rank, if all σ are alike."""
    return float(np.trace(gramian) ** 2 / (gramian**2).sum())


def effective_rank(gramian: Array) -> float:
    """exp of the entropy of σ / Σ σ.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007, definition 1.
    """
    sigma = np.sqrt(np.linalg.eigvalsh(gramian).clip(0))
    share = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@dataclass(frozen=True)
class Concentration:
    """The Jacobian of a behaviour's margins, by its Gramian.

    Attributes:
        layers: names of the layers; see `probing.layer_names`.
        gramians: shape (layers, n, n), products of the probes' gradients, layer by layer.
        positions: shape (n, T), ‖∂m/∂h‖² in the residual stream before the first block, from the
            last token backwards, 0 beyond a probe's beginning; T is 0 where no stack was found.
    """

    layers: tuple[str, ...]
    gramians: Array
    positions: Array

    def jackknife(self, statistic: Callable[[Array], float]) -> Estimate:
        """A statistic of the Gramian, with its 95 % interval by the jackknife over probes.

        Not by the bootstrap: a probe drawn twice adds no direction, so that ranks come out low.
        """
        whole = self.gramians.sum(0)
        n = len(whole)
        left = [np.delete(np.delete(whole, i, 0), i, 1) for i in range(n)] if n > 2 else []
        return jackknife_estimate(statistic(whole), [statistic(one) for one in left])

    @property
    def rank_share(self) -> Estimate:
        """The participation ratio over the number of probes, in (0, 1]: small is concentrated."""
        return self.jackknife(lambda gramian: participation_ratio(gramian) / len(gramian))

    @property
    def entropy_share(self) -> Estimate:
        """The same of the entropy's effective rank."""
        return self.jackknife(lambda gramian: effective_rank(gramian) / len(gramian))

    @property
    def by_layer(self) -> dict[str, float]:
        """Each layer's share of Σ σ²."""
        energy = np.trace(self.gramians, axis1=1, axis2=2)
        return dict(zip(self.layers, (energy / energy.sum()).tolist(), strict=True))

    @property
    def by_position(self) -> Array:
        """Each token's share of ‖∂m/∂h‖², mean over probes, from the last token backwards."""
        return (self.positions / self.positions.sum(1, keepdims=True)).mean(0)


def jackknife_estimate(value: float, left_out: Sequence[float]) -> Estimate:
    """An estimate from its values with each unit left out; two or fewer have no interval.

    Source: Efron and Stein, Annals of Statistics 9 (1981), equation 1.4, with a t-quantile.
    """
    n = len(left_out)
    if n < 3:
        return Estimate(value, float("nan"), float("nan"), n)
    half = float(stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) * np.var(left_out)))
    return Estimate(value, value - half, value + half, n)


def concentration(
    model: nn.Module,
    behavior: Behavior,
    *,
    parameters: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> Concentration:
    """The Gramian of the margins' gradients by layer, and their energy by token.

    Gradients are taken for some layers at a time, a pass a probe, so that 2 GB of them are held,
    or those of the largest tensor alone where that is more (SmolLM2-135M, 24 probes: 2.7 GB; all at
    once would be 13 GB).

    Args:
        parameters: of the model; None: those that require a gradient.

    Raises:
        BehaviorError: the model is sharded over ranks, the probes cannot be taken apart, or a
            margin is detached from the graph.
    """
    if has_sharded_parameters(model):
        raise BehaviorError("a model sharded over ranks has no Jacobian here: gather it first")
    own = [p for p in model.parameters() if p.requires_grad] if parameters is None else parameters
    probes = [behavior.subset([index]) for index in range(len(behavior.probes))]
    names = layer_names(model, own)
    layers = tuple(dict.fromkeys(names))
    blocks = _parameter_groups(names, [p.numel() * len(probes) for p in own])
    gramians = np.zeros((len(layers), len(probes), len(probes)))
    positions: list[Array] = []
    for number, block in enumerate(blocks):
        rows = []
        for index, probe in enumerate(probes):
            with _grad_enabled(model), _capture_stream_input(model) as seen:
                margin = compute_margins(probe, model).values.sum()
                if number == 0:
                    positions.append(_gradient_energy(margin, seen))
                row = gradient_of(margin, [own[at] for at in block])
            rows.append(row or [torch.zeros_like(own[at]) for at in block])
            if progress is not None:
                progress(number * len(probes) + index + 1, len(blocks) * len(probes))
        for place, at in enumerate(block):
            parts = [[row[place]] for row in rows]
            products = torch.stack([inner_products(part, parts).double() for part in parts])
            gramians[layers.index(names[at])] += products.cpu().numpy()
    if not gramians.any():
        raise BehaviorError(
            f"behaviour {behavior.name!r}: the margins depend on none of the parameters: are they "
            "detached from the graph?"
        )
    return Concentration(layers, gramians, _pad_rows(positions))


def _parameter_groups(names: list[str], sizes: list[int]) -> list[list[int]]:
    """Parameters by their places, of neighbouring layers as many as are held at a time."""
    found: list[list[int]] = []
    held = MAX_GRADIENT_ELEMENTS
    for at in sorted(range(len(names)), key=lambda at: names.index(names[at])):
        if held + sizes[at] > MAX_GRADIENT_ELEMENTS:
            found.append([])
            held = 0
        found[-1].append(at)
        held += sizes[at]
    return found


@contextmanager
def _grad_enabled(model: nn.Module) -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
        yield


@contextmanager
def _capture_stream_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """What goes into the first block of the longest stack, at each call that builds a graph."""
    seen: list[Tensor] = []
    found = layer_stacks(model)

    def keep(_module: nn.Module, inputs: Any, named: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        place = 0 if inputs else "hidden_states"
        hidden = inputs[0] if inputs else named.get(place)
        if not isinstance(hidden, Tensor) or hidden.dim() != 3:
            return None
        if not hidden.requires_grad:  # the embedding is frozen
            hidden = hidden.detach().requires_grad_()
        seen.append(hidden)
        return ((hidden, *inputs[1:]), named) if inputs else (inputs, {**named, place: hidden})

    if not found:
        yield seen
        return
    stack = max(found, key=lambda name: found[name])
    first = model.get_submodule(f"{stack}.0")
    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _gradient_energy(margin: Tensor, seen: list[Tensor]) -> Array:
    """‖∂m/∂h‖² of one probe, from its last token backwards, shape (tokens,).

    A probe whose options share a prompt may be read in several calls, the prompt first; its energy
    is then that of the gradient in what the options share.
    """
    if not seen or not margin.requires_grad:
        return np.zeros(0)
    found = torch.autograd.grad(margin, seen, retain_graph=True, allow_unused=True)
    parts = [part.double().square().sum((0, 2)).cpu() for part in found if part is not None]
    return np.asarray(torch.cat(parts).flip(0).numpy()) if parts else np.zeros(0)


def _pad_rows(rows: list[Array]) -> Array:
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])
