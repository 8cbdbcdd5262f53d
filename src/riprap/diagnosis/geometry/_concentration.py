"""Concentration: in how many directions, layers and tokens a behavior's margins are sensitive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from riprap.evaluation import (
    compute_margins,
    gradient_of,
    layer_names,
    layer_stacks,
    preserve_training_state,
)
from riprap.linalg import inner_products

Array = NDArray[np.float64]
MAX_GRADIENT_ELEMENTS = 2**29  # of all probes' gradients in memory at a time: 2 GB in float32


def participation_ratio(gramian: Array) -> float:
    """Compute (Σ σ²)² / Σ σ⁴ of a Jacobian from its Gramian; its rank if all σ are equal."""
    return float(np.trace(gramian) ** 2 / (gramian**2).sum())


def effective_rank(gramian: Array) -> float:
    """Compute exp of the entropy of σ / Σ σ.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007, definition 1.
    """
    sigma = np.sqrt(np.linalg.eigvalsh(gramian).clip(0))
    share = sigma[sigma > 0] / sigma.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@dataclass(frozen=True)
class Concentration:
    """Jacobian of a behavior's margins, by its Gramian.

    Attributes:
        layers: names of the layers; see `evaluation.layer_names`.
        gramians: shape (layers, n, n), inner products of the probes' gradients by layer.
        positions: shape (n, T), ‖∂m/∂h‖² in the residual stream before the first block, from the
            last token backwards; 0 beyond a probe's first token. T is 0 if no stack was found.
    """

    layers: tuple[str, ...]
    gramians: Array
    positions: Array

    def jackknife(self, statistic: Callable[[Array], float]) -> Estimate:
        """Compute a statistic of the Gramian with its 95 % jackknife interval over probes.

        The bootstrap would give ranks that are too low, because a probe that is drawn twice adds no
        direction.
        """
        gramian = self.gramians.sum(0)
        n = len(gramian)
        without = [np.delete(np.delete(gramian, i, 0), i, 1) for i in range(n)] if n > 2 else []
        return jackknife_estimate(statistic(gramian), [statistic(part) for part in without])

    @property
    def rank_share(self) -> Estimate:
        """Participation ratio ÷ number of probes, in (0, 1]; small values are concentrated."""
        return self.jackknife(lambda gramian: participation_ratio(gramian) / len(gramian))

    @property
    def entropy_share(self) -> Estimate:
        """Effective rank (entropy) ÷ number of probes."""
        return self.jackknife(lambda gramian: effective_rank(gramian) / len(gramian))

    @property
    def by_layer(self) -> dict[str, float]:
        """Share of Σ σ² by layer."""
        energy = np.trace(self.gramians, axis1=1, axis2=2)
        return dict(zip(self.layers, (energy / energy.sum()).tolist(), strict=True))

    @property
    def by_position(self) -> Array:
        """Share of ‖∂m/∂h‖² by token, mean over probes, from the last token backwards."""
        return (self.positions / self.positions.sum(1, keepdims=True)).mean(0)


def jackknife_estimate(value: float, left_out: Sequence[float]) -> Estimate:
    """Compute the jackknife interval of a value; two or fewer left-out values give none.

    Args:
        left_out: the value with each unit left out.

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
    """Compute the Gramian of the margins' gradients by layer, and their energy by token.

    Gradients are computed for some layers at a time, with one pass per probe, so that 2 GB of them
    are in memory, or those of the largest tensor if they are larger (SmolLM2-135M, 24 probes: 2.7
    GB; all at once would be 13 GB).

    Args:
        parameters: of the model; None: those that require a gradient.

    Raises:
        BehaviorError: the model is sharded over ranks, the probes cannot be separated, or a margin
            is detached from the graph.
    """
    if has_sharded_parameters(model):
        raise BehaviorError(
            "concentration needs a whole model: gather the sharded parameters first"
        )
    if parameters is None:
        parameters = [p for p in model.parameters() if p.requires_grad]
    probes = [behavior.subset([index]) for index in range(len(behavior.probes))]
    names = layer_names(model, parameters)
    layers = tuple(dict.fromkeys(names))
    groups = _parameter_groups(names, [p.numel() * len(probes) for p in parameters])
    gramians = np.zeros((len(layers), len(probes), len(probes)))
    positions: list[Array] = []
    for number, group in enumerate(groups):
        rows = []
        for index, probe in enumerate(probes):
            with _grad_enabled(model), _capture_stream_input(model) as captured:
                margin = compute_margins(probe, model).values.sum()
                if number == 0:
                    positions.append(_gradient_energy(margin, captured))
                row = gradient_of(margin, [parameters[at] for at in group])
            rows.append(row or [torch.zeros_like(parameters[at]) for at in group])
            if progress is not None:
                progress(number * len(probes) + index + 1, len(groups) * len(probes))
        for place, at in enumerate(group):
            parts = [[row[place]] for row in rows]
            products = torch.stack([inner_products(part, parts).double() for part in parts])
            gramians[layers.index(names[at])] += products.cpu().numpy()
    if not gramians.any():
        raise BehaviorError(
            f"behavior {behavior.name!r}: the margins do not depend on the parameters: are they "
            "detached from the graph?"
        )
    return Concentration(layers, gramians, _pad_rows(positions))


def _parameter_groups(names: list[str], sizes: list[int]) -> list[list[int]]:
    """Indices of parameters, grouped by neighboring layers up to `MAX_GRADIENT_ELEMENTS`."""
    groups: list[list[int]] = []
    total = MAX_GRADIENT_ELEMENTS
    for at in sorted(range(len(names)), key=lambda at: names.index(names[at])):
        if total + sizes[at] > MAX_GRADIENT_ELEMENTS:
            groups.append([])
            total = 0
        groups[-1].append(at)
        total += sizes[at]
    return groups


@contextmanager
def _grad_enabled(model: nn.Module) -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad(), preserve_training_state(model):
        yield


@contextmanager
def _capture_stream_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Capture the input of the first block of the longest stack, at each call with a graph."""
    captured: list[Tensor] = []

    def capture(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not torch.is_grad_enabled() or not isinstance(hidden, Tensor) or hidden.dim() != 3:
            return None
        if not hidden.requires_grad:  # the embedding is frozen
            hidden = hidden.detach().requires_grad_()
        captured.append(hidden)
        if args:
            return ((hidden, *args[1:]), kwargs)
        return (args, {**kwargs, "hidden_states": hidden})

    with ExitStack() as stack:
        if stacks := layer_stacks(model):
            longest = max(stacks, key=lambda name: stacks[name])
            first = model.get_submodule(f"{longest}.0")
            stack.callback(first.register_forward_pre_hook(capture, with_kwargs=True).remove)
        yield captured


def _gradient_energy(margin: Tensor, captured: list[Tensor]) -> Array:
    """‖∂m/∂h‖² of one probe, from its last token backwards, shape (tokens,).

    A probe whose options share a prompt may run in several calls, the prompt first; its energy
    there is that of the gradient in what the options share.
    """
    if not captured or not margin.requires_grad:
        return np.zeros(0)
    gradients = torch.autograd.grad(margin, captured, retain_graph=True, allow_unused=True)
    parts = [part.double().square().sum((0, 2)).cpu() for part in gradients if part is not None]
    return np.asarray(torch.cat(parts).flip(0).numpy()) if parts else np.zeros(0)


def _pad_rows(rows: list[Array]) -> Array:
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])
