"""Redundancy: how many directions of the residual stream must be ablated to break a behavior."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Estimate, Progress
from riprap.errors import BehaviorError, ConfigError

Array = NDArray[np.float64]
Bases = Mapping[str, Tensor]  # by layer, orthonormal columns, shape (d, directions)
STEEP, RANDOM, UNRELATED = "steep", "random", "unrelated"
RESAMPLES = 1000


@dataclass(frozen=True)
class Redundancy:
    """Margins after directions of the residual stream are ablated.

    Attributes:
        counts: numbers of directions.
        intact: shape (n,), margins of the model without ablation.
        ablated_margins: by kind of direction, shape (draws, counts, n). `steep`: the directions in
            which the behavior's margins are most sensitive, one draw; `unrelated`: found in the
            same way for differences of two random logits on the same probes; `random`: directions
            in general.
        contrast_margins: the same for the contrast's margins; no probes without a contrast.
        floor: the score under which a behavior is broken.
    """

    counts: tuple[int, ...]
    intact: Array
    ablated_margins: dict[str, Array]
    contrast_margins: dict[str, Array]
    floor: float

    @property
    def directions_needed(self) -> float:
        """Smallest of `counts` at which the steep directions break a score, or ∞.

        The score is that of the behavior or of its contrast.
        """
        both = (self.ablated_margins, self.contrast_margins)
        return self._directions_needed(*(margins[STEEP][0] > 0 for margins in both))

    @property
    def directions_needed_alone(self) -> float:
        """The same for the behavior's score alone."""
        return self._directions_needed(self.ablated_margins[STEEP][0] > 0)

    def _directions_needed(self, *passed: Array) -> float:
        scores = np.min([side.mean(-1) for side in passed if side.shape[-1]], axis=0)
        below = np.flatnonzero(scores < self.floor)
        return float(self.counts[below[0]]) if len(below) else float("inf")

    def directions_needed_estimate(self, seed: int = 0) -> Estimate:
        """Return `directions_needed` with its 95 % bootstrap interval over probes."""
        noise = np.random.default_rng(seed)
        sides = [self.ablated_margins[STEEP][0] > 0, self.contrast_margins[STEEP][0] > 0]
        sizes = [side.shape[-1] for side in sides]
        draws = [noise.integers(max(n, 1), size=(RESAMPLES, n)) for n in sizes]
        needed = [
            self._directions_needed(*(side[:, r] for side, r in zip(sides, rows, strict=True)))
            for rows in zip(*draws, strict=True)
        ]
        low, high = np.quantile(needed, [0.025, 0.975], method="closest_observation")
        return Estimate(self.directions_needed, float(low), float(high), len(self.intact))

    def scores(self, kind: str) -> Array:
        """Compute the share of probes that pass, shape (draws, counts)."""
        return np.asarray((self.ablated_margins[kind] > 0).mean(-1))

    def contrast_scores(self, kind: str) -> Array:
        """Compute the same for the contrast; NaN without one."""
        passed = self.contrast_margins[kind] > 0
        if not passed.shape[-1]:
            return np.full(passed.shape[:2], np.nan)
        return np.asarray(passed.mean(-1))

    def worst_scores(self, kind: str) -> Array:
        """Compute the lower of both scores, shape (draws, counts)."""
        return np.asarray(np.fmin(self.scores(kind), self.contrast_scores(kind)))

    def mean_margins(self, kind: str) -> Array:
        """Compute the mean margin, shape (draws, counts), in the margin's unit."""
        return np.asarray(self.ablated_margins[kind].mean(-1))


def redundancy(
    model: nn.Module,
    behavior: Behavior,
    *,
    contrast: Behavior | None = None,
    counts: Sequence[int] = (1, 2, 4, 8, 16),
    layer: str | None = None,
    seed: int = 0,
    draws: int = 3,
    progress: Progress | None = None,
) -> Redundancy:
    """Measure the score when the top directions are ablated, and for two baseline directions.

    The *steep* directions of a layer are the principal directions of ∂m/∂h over all probes and
    tokens, with h the layer's output. This definition needs no contrasting examples, so it works
    for refusals, skills and facts. A direction u is ablated as h ← h − u uᵀ h at every token.
    Directions are computed on one half of the probes and tested on the other, both ways.

    Args:
        contrast: for a behavior with a single answer, the behavior for which that answer is wrong.
            A model that no longer distinguishes the two gives one answer to both, and the score of
            one of them alone then shows no loss.
        counts: numbers of directions, rising; at most the width of the stream.
        layer: name of a module; None: all blocks of the longest stack at once, each along its own
            directions.
        draws: number of random and of unrelated draws, one at least.

    Source: ours, after Arditi et al., 2406.11717, equation 4 (the ablation).

    Raises:
        BehaviorError: no stack of layers, no such layer, fewer than two probes, probes that cannot
            be separated, or a margin that does not depend on the layer.
        ConfigError: counts or draws that are too small, or more directions than the stream has.
    """
    counts = tuple(counts)
    if not counts or min(counts) < 1 or list(counts) != sorted(set(counts)) or draws < 1:
        raise ConfigError(
            f"counts={counts}, draws={draws}; pass rising counts from 1, and at least one draw"
        )
    layers = _layers(model, layer)
    sides = [_halves(side) for side in (behavior, contrast) if side is not None]
    noise = torch.Generator().manual_seed(seed)
    rounds = [(STEEP, 0), *((kind, d) for kind in (RANDOM, UNRELATED) for d in range(draws))]
    sizes = [len(behavior.probes), 0 if contrast is None else len(contrast.probes)]
    stores = [
        {k: np.zeros((1 if k == STEEP else draws, len(counts), n)) for k, _ in rounds}
        for n in sizes
    ]
    done, total = 0, 2 * len(rounds) * len(counts)
    for half in (0, 1):
        _, fitted = sides[0][1 - half]
        for kind, draw in rounds:
            bases = _directions(model, fitted, layers, kind, noise)
            width = min(len(basis) for basis in bases.values())
            if counts[-1] > width:
                raise ConfigError(f"counts has {counts[-1]}, and the stream has {width} directions")
            for place, count in enumerate(counts):
                with directions_removed(model, {name: b[:, :count] for name, b in bases.items()}):
                    for margins, side in zip(stores, sides, strict=False):
                        rows, tested = side[half]
                        evaluated = evaluation.evaluate(tested, model)
                        margins[kind][draw, place, rows] = evaluated.margins
                done += 1
                if progress is not None:
                    progress(done, total)
    intact = evaluation.evaluate(behavior, model).margins
    return Redundancy(counts, intact, stores[0], stores[1], behavior.floor)


def _halves(behavior: Behavior) -> list[tuple[list[int], Behavior]]:
    """Every other probe, and the rest, with their indices."""
    n = len(behavior.probes)
    if n < 2:
        raise BehaviorError(f"behavior {behavior.name!r}: redundancy needs two probes or more")
    halves = [list(range(first, n, 2)) for first in (0, 1)]
    return [(rows, behavior.subset(rows)) for rows in halves]


@contextmanager
def directions_removed(model: nn.Module, bases: Bases) -> Iterator[None]:
    """Remove some directions from the outputs of layers, by module name, until exit."""

    def project_out(basis: Tensor, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        u = basis.to(hidden)
        hidden = hidden - (hidden @ u) @ u.T
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as stack:
        for name, basis in bases.items():
            hook = partial(project_out, basis)
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield


def _layers(model: nn.Module, layer: str | None) -> list[str]:
    if layer is not None:
        name = evaluation.find_layer(model, layer)
        return [] if name is None else [name]
    stacks = evaluation.layer_stacks(model)
    if not stacks:
        raise BehaviorError("the model has no list of equal blocks: pass the name of a layer")
    longest = max(stacks, key=lambda name: stacks[name])
    return [f"{longest}.{index}" for index in range(stacks[longest])]


def _directions(
    model: nn.Module, behavior: Behavior, layers: list[str], kind: str, noise: torch.Generator
) -> dict[str, Tensor]:
    """Directions by layer, the most important first, shape (d, d)."""
    moments: dict[str, Tensor] = {}
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        evaluation.preserve_training_state(model),
    ):
        with _capture_outputs(model, layers) as captured:
            if kind == UNRELATED:
                logits = evaluation.answer_logits(behavior, model)
                value = _random_logit_difference(logits, noise)
            else:
                value = evaluation.compute_margins(behavior, model).values.sum()
        if kind == RANDOM:
            widths = {name: parts[-1].shape[-1] for name, parts in captured.items() if parts}
            normals = {n: torch.randn(d, d, generator=noise).double() for n, d in widths.items()}
            return {name: torch.linalg.qr(normal)[0] for name, normal in normals.items()}
        outputs = [(name, part) for name, parts in captured.items() for part in parts]
        if not outputs or not value.requires_grad:
            raise _independent_of_layers(behavior, layers)
        # Rows are independent, so the gradient of the sum contains the gradient of each probe.
        gradients = torch.autograd.grad(value, [part for _, part in outputs], allow_unused=True)
    for (name, _), gradient in zip(outputs, gradients, strict=True):
        if gradient is not None:
            rows = gradient.cpu().double().reshape(-1, gradient.shape[-1])
            moments[name] = moments.get(name, 0) + rows.T @ rows
    if set(moments) != set(layers) or not all(bool(m.any()) for m in moments.values()):
        raise _independent_of_layers(behavior, layers)
    return {name: torch.linalg.eigh(moment)[1].flip(1) for name, moment in moments.items()}


def _random_logit_difference(logits: Tensor, noise: torch.Generator) -> Tensor:
    """Sum over answered tokens of the difference of two random logits."""
    size, count = logits.shape[-1], len(logits)
    first = torch.randint(size, (count,), generator=noise)
    second = (first + torch.randint(1, size, (count,), generator=noise)) % size  # never the first
    rows = torch.arange(len(logits), device=logits.device)
    return (logits[rows, first.to(rows)] - logits[rows, second.to(rows)]).sum()


@contextmanager
def _capture_outputs(model: nn.Module, layers: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Capture the outputs of layers, in the graph, at each call that builds one."""
    captured: dict[str, list[Tensor]] = {name: [] for name in layers}

    def capture(name: str, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or not torch.is_grad_enabled():
            return None
        if not hidden.requires_grad:  # all parameters below are frozen
            hidden = hidden.detach().requires_grad_()
        captured[name].append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as stack:
        for name in layers:
            hook = partial(capture, name)
            stack.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield captured


def _independent_of_layers(behavior: Behavior, layers: list[str]) -> BehaviorError:
    return BehaviorError(
        f"behavior {behavior.name!r}: the margins do not depend on the outputs of "
        f"{', '.join(layers[:3])}: name a layer that they depend on, and keep them in the graph"
    )
