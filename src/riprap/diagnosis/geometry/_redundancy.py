"""How many directions of the residual stream a behaviour rests on: ablate them and look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Estimate, Progress
from riprap.errors import BehaviorError, ConfigError
from riprap.evaluation import layer_stacks

Array = NDArray[np.float64]
Bases = Mapping[str, Tensor]  # by layer, orthonormal columns, shape (d, directions)
STEEP, RANDOM, UNRELATED = "steep", "random", "unrelated"
RESAMPLES = 1000


@dataclass(frozen=True)
class Redundancy:
    """Margins left when directions of the residual stream are ablated.

    Attributes:
        counts: how many directions.
        intact: shape (n,), margins of the model as it is.
        left: by kind of direction, shape (draws, counts, n). `steep`: those in which the
            behaviour's margins are most sensitive, one draw; `unrelated`: found in the same way for
            differences of two random logits on the same probes; `random`: of all directions.
        beside: the same of the contrast's margins; no probes where there is none.
        floor: the score under which a behaviour is broken.
    """

    counts: tuple[int, ...]
    intact: Array
    ablated_margins: dict[str, Array]
    contrast_margins: dict[str, Array]
    floor: float

    @property
    def directions_needed(self) -> float:
        """The least of `counts` whose steep directions bring a score under the floor, or ∞.

        That of the behaviour, or of its contrast.
        """
        return self._directions_needed(self.ablated_margins[STEEP][0] > 0, self.contrast_margins[STEEP][0] > 0)

    @property
    def directions_needed_alone(self) -> float:
        """The same of the behaviour's score alone."""
        passed = self.ablated_margins[STEEP][0] > 0
        return self._directions_needed(passed, passed[:, :0])

    def _directions_needed(self, *passed: Array) -> float:
        scores = np.min([own.mean(-1) for own in passed if own.shape[-1]], axis=0)
        under = np.flatnonzero(scores < self.floor)
        return float(self.counts[under[0]]) if len(under) else float("inf")

    def directions_needed_estimate(self, seed: int = 0) -> Estimate:
        """`needed` with its 95 % interval, from probes drawn anew a thousand times."""
        made = np.random.default_rng(seed)
        sides = [self.ablated_margins[STEEP][0] > 0, self.contrast_margins[STEEP][0] > 0]
        drawn = [
            made.integers(max(n, 1), size=(RESAMPLES, n)) for n in (s.shape[-1] for s in sides)
        ]
        found = [
            self._directions_needed(*(own[:, rows] for own, rows in zip(sides, pair, strict=True)))
            for pair in zip(*drawn, strict=True)
        ]
        low, high = np.quantile(found, [0.025, 0.975], method="closest_observation")
        return Estimate(self.directions_needed, float(low), float(high), len(self.intact))

    def scores(self, kind: str) -> Array:
        """Share of the probes that still behave, shape (draws, counts)."""
        return np.asarray((self.ablated_margins[kind] > 0).mean(-1))

    def contrast_scores(self, kind: str) -> Array:
        """The same of the contrast; NaN without one."""
        passed = self.contrast_margins[kind] > 0
        if not passed.shape[-1]:
            return np.full(passed.shape[:2], np.nan)
        return np.asarray(passed.mean(-1))

    def worst_scores(self, kind: str) -> Array:
        """The lower of both scores, shape (draws, counts)."""
        return np.asarray(np.fmin(self.scores(kind), self.contrast_scores(kind)))

    def mean_margins(self, kind: str) -> Array:
        """Mean margin left, shape (draws, counts), in the margin's unit."""
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
    """The score kept when the top-j directions are ablated, beside two kinds of other directions.

    The directions of a layer are *steep*: the principal directions of ∂m/∂h over all probes and
    tokens, h the layer's output. One definition serves refusals, skills and facts, since it asks
    for no contrast: a difference of means needs the other side, and a fact has none. A direction u
    is ablated as h ← h − u uᵀ h at every token. Directions are found on one half of the probes and
    judged on the other, both ways, so that none is judged by what it was fitted to.

    Args:
        contrast: where one answer is right for all probes, the behaviour for which it is wrong. A
            model that can no longer tell them apart gives one answer to both, and the score of
            one of them alone then says that nothing was lost.
        counts: numbers of directions, rising; at most the width of the stream.
        layer: a module's name; None: all blocks of the longest stack at once, each by its own.
        draws: of random and of unrelated directions, one at least.

    Source: ours, after Arditi et al., 2406.11717, equation 4 (the ablation).

    Raises:
        BehaviorError: no stack of layers, no such layer, fewer than two probes, probes that cannot
            be taken apart, or a margin that does not depend on the layer.
        ConfigError: counts or draws that are too small, or more directions than there are.
    """
    asked = tuple(counts)
    if not asked or min(asked) < 1 or list(asked) != sorted(set(asked)) or draws < 1:
        raise ConfigError(f"give rising counts from 1 and a draw at least, not {asked}, {draws}")
    layers = _layers(model, layer)
    sides = [_halves(one) for one in (behavior, contrast) if one is not None]
    noise = torch.Generator().manual_seed(seed)
    rounds = [(STEEP, 0), *((kind, d) for kind in (RANDOM, UNRELATED) for d in range(draws))]
    sizes = [len(behavior.probes), 0 if contrast is None else len(contrast.probes)]
    left, beside = (
        {k: np.zeros((1 if k == STEEP else draws, len(asked), n)) for k, _ in rounds} for n in sizes
    )
    done, total = 0, 2 * len(rounds) * len(asked)
    for half in (0, 1):
        _, fit = sides[0][1 - half]
        for kind, draw in rounds:
            bases = _directions(model, fit, layers, kind, noise)
            width = min(len(basis) for basis in bases.values())
            if asked[-1] > width:
                raise ConfigError(f"{asked[-1]} directions of a stream that has {width}")
            for place, count in enumerate(asked):
                with directions_removed(model, {name: b[:, :count] for name, b in bases.items()}):
                    for store, side in zip((left, beside), sides, strict=False):
                        judged, own = side[half]
                        store[kind][draw, place, judged] = probing.evaluate(own, model).margins
                done += 1
                if progress is not None:
                    progress(done, total)
    return Redundancy(asked, probing.evaluate(behavior, model).margins, left, beside, behavior.floor)


def _halves(behavior: Behavior) -> list[tuple[list[int], Behavior]]:
    """Every other probe, and the rest, with their places."""
    n = len(behavior.probes)
    if n < 2:
        raise BehaviorError(f"behaviour {behavior.name!r}: redundancy needs two probes or more")
    places = [list(range(first, n, 2)) for first in (0, 1)]
    return [(own, behavior.subset(own)) for own in places]


@contextmanager
def directions_removed(model: nn.Module, bases: Bases) -> Iterator[None]:
    """The model without what its layers put out along some directions.

    Args:
        bases: by module name, orthonormal columns, shape (d, directions).
    """

    def without(basis: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            own = basis.to(hidden)
            hidden = hidden - (hidden @ own) @ own.T
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    with ExitStack() as stack:
        for name, basis in bases.items():
            handle = model.get_submodule(name).register_forward_hook(without(basis))
            stack.callback(handle.remove)
        yield


def _layers(model: nn.Module, layer: str | None) -> list[str]:
    if layer is not None:
        found = probing.find_layer(model, layer)
        return [] if found is None else [found]
    lists = layer_stacks(model)
    if not lists:
        raise BehaviorError("the model has no stack of layers that could be found: name a layer")
    longest = max(lists, key=lambda name: lists[name])
    return [f"{longest}.{index}" for index in range(lists[longest])]


def _directions(
    model: nn.Module, behavior: Behavior, layers: list[str], kind: str, noise: torch.Generator
) -> dict[str, Tensor]:
    """Directions by layer, the first the most important, shape (d, d)."""
    moments: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad(), probing.preserve_training_state(model):
        with _capture_outputs(model, layers) as seen:
            if kind == UNRELATED:
                value = _random_logit_difference(probing.answer_logits(behavior, model), noise)
            else:
                value = probing.compute_margins(behavior, model).values.sum()
        if kind == RANDOM:
            widths = {name: parts[-1].shape[-1] for name, parts in seen.items() if parts}
            drawn = {n: torch.randn(d, d, generator=noise).double() for n, d in widths.items()}
            return {name: torch.linalg.qr(normal)[0] for name, normal in drawn.items()}
        places = [(name, part) for name, parts in seen.items() for part in parts]
        if not places or not value.requires_grad:
            raise _independent_of_layers(behavior, layers)
        # Rows do not mix, so that the gradient of the sum holds every probe's own.
        found = torch.autograd.grad(value, [part for _, part in places], allow_unused=True)
    for (name, _), part in zip(places, found, strict=True):
        if part is not None:
            rows = part.cpu().double().reshape(-1, part.shape[-1])
            moments[name] = moments.get(name, 0) + rows.T @ rows
    if set(moments) != set(layers) or not all(bool(m.any()) for m in moments.values()):
        raise _independent_of_layers(behavior, layers)
    return {name: torch.linalg.eigh(moment)[1].flip(1) for name, moment in moments.items()}


def _random_logit_difference(logits: Tensor, noise: torch.Generator) -> Tensor:
    """Sum over answered tokens of the difference of two random logits."""
    size, count = logits.shape[-1], len(logits)
    one = torch.randint(size, (count,), generator=noise)
    two = (one + torch.randint(1, size, (count,), generator=noise)) % size  # another one
    rows = torch.arange(len(logits), device=logits.device)
    return (logits[rows, one.to(rows)] - logits[rows, two.to(rows)]).sum()


@contextmanager
def _capture_outputs(model: nn.Module, layers: list[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What the layers put out, in the graph, at each call that builds one."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if not isinstance(hidden, Tensor) or not torch.is_grad_enabled():
                return None
            if not hidden.requires_grad:  # every parameter below is frozen
                hidden = hidden.detach().requires_grad_()
            seen[name].append(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    with ExitStack() as stack:
        for name in layers:
            handle = model.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        yield seen


def _independent_of_layers(behavior: Behavior, layers: list[str]) -> BehaviorError:
    return BehaviorError(
        f"behaviour {behavior.name!r}: the margins do not depend on what {', '.join(layers[:3])} "
        "put out: name a layer that they run through, and keep them in the graph"
    )
