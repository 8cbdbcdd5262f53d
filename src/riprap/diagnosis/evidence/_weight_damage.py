"""Weight damage: does the change of the weights alone show that nothing was trained?

Each changed matrix is examined by itself. Its change is *explained* without training by one of

- *pruning*: every changed weight is exactly 0 now.
- *quantization*: blocks of 32 neighbors have 16 different values at most, which was not so before,
  and are an increasing function of the values before, as rounding to a grid is.
- *noise*: no singular value of the change stands out of those of independent entries. A gradient is
  a sum of few outer products, so training leaves directions that stand out. Noise is also what
  rounding to a finer grid looks like, or to one that is scaled by input channels.

The change as a whole is explained if all changed matrices are, and if vectors and other tensors,
which have no such singular values, moved no more than noise of the matrices' size would move them.
Training that is weak beside the noise cannot be seen; then the kind is `noise` as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from riprap.diagnosis._weight_sources import Weights, named_weights
from riprap.diagnosis.evidence._weight_change import squared_singular_values
from riprap.linalg import upcast

BLOCK, LEVELS = 32, 16  # smallest group of common formats; values of four bits
FIRST_BLOCKS = 256  # that are looked at before all of them
MIN_SIDE = 32  # shortest side of a matrix whose singular values are tested
MIN_ZEROED = 0.01  # share of a matrix's weights that became exactly 0
FALSE_STRUCTURE = 0.001  # probability that pure noise, in all matrices together, looks structured
NOISE_RANGE = 3.0  # times the noise of the matrices that another tensor may have moved
BALANCING_STEPS = 10  # that give all rows and columns of a change the same mean square
PRUNING, QUANTIZATION, NOISE = "pruning", "quantization", "noise"


@dataclass(frozen=True)
class WeightDamage:
    """What the change of the weights shows.

    Attributes:
        kinds: among pruning, quantization and noise, those that were found.
        is_whole: whether they explain all of the change; otherwise there was training as well, or
            it cannot be told.
    """

    kinds: tuple[str, ...] = ()
    is_whole: bool = False

    @property
    def text(self) -> str:
        """Kinds in words; empty if there are none."""
        return " and ".join(self.kinds)


def weight_damage(model: nn.Module, reference: nn.Module | Weights) -> WeightDamage:
    """Examine the change of a model's weights since its reference.

    A model with other parameters than the reference, such as adapters, was trained.
    """
    before, now = named_weights(reference), named_weights(model)
    if any(name not in before or before[name].shape != now[name].shape for name in now):
        return WeightDamage()
    changed = [name for name in now if not torch.equal(*_pair(before, now, name))]
    matrices = [name for name in changed if now[name].dim() == 2]
    found, is_whole = set(), bool(matrices)
    sizes: list[tuple[float, float]] = []  # of the noise
    for name in matrices:
        false_structure = FALSE_STRUCTURE / len(matrices) if is_whole else None
        kind, is_explained = _examine(*_pair(before, now, name), false_structure)
        found.add(kind)
        is_whole = is_whole and is_explained
        if kind == NOISE:
            sizes.append(_size(*_pair(before, now, name)))
    others = [name for name in changed if name not in matrices]
    if is_whole and others:  # pruning and quantization leave vectors as they are
        is_whole = bool(sizes) and all(
            _is_as_small(_size(*_pair(before, now, name)), sizes) for name in others
        )
    kinds = (PRUNING, QUANTIZATION, NOISE) if is_whole else (PRUNING, QUANTIZATION)
    return WeightDamage(tuple(kind for kind in kinds if kind in found), is_whole)


def _pair(before: Weights, now: Weights, name: str) -> tuple[Tensor, Tensor]:
    start = upcast(before[name].detach()).cpu()
    return start, now[name].detach().to(start)


def _size(before: Tensor, now: Tensor) -> tuple[float, float]:
    """Return the root mean square of the values that changed: of their change, and relative."""
    changed = before != now
    moved = float((now - before)[changed].double().square().mean().sqrt())
    start = float(before[changed].double().square().mean().sqrt())
    return moved, moved / start if start > 0 else math.inf


def _is_as_small(size: tuple[float, float], sizes: list[tuple[float, float]]) -> bool:
    """Tell if a change is no larger than noise, which is absolute or relative to the weights."""
    smallest = [min(own) for own in zip(*sizes, strict=True)]
    return any(own <= NOISE_RANGE * least for own, least in zip(size, smallest, strict=True))


def _examine(before: Tensor, now: Tensor, false_structure: float | None) -> tuple[str, bool]:
    """Return the kind of damage of one matrix, and whether it explains the whole change.

    Args:
        false_structure: see `is_unstructured`; None: do not test for noise.
    """

    def is_noise() -> bool:
        return false_structure is not None and is_unstructured(now - before, false_structure)

    changed = before != now
    zeroed = changed & (now == 0)
    if torch.equal(zeroed, changed):
        return PRUNING, True
    if (grid := _rounding(before, now)) is not None:
        return QUANTIZATION, grid or is_noise()
    if zeroed.double().mean() >= MIN_ZEROED:
        return PRUNING, False
    return (NOISE, True) if is_noise() else ("", False)


def _rounding(before: Tensor, now: Tensor) -> bool | None:
    """Return whether values on a coarse grid are rounded ones; None if they are on none."""
    if before.shape[1] < BLOCK:
        return None
    width = before.shape[1] // BLOCK * BLOCK
    before, now = (weight[:, :width].reshape(-1, BLOCK) for weight in (before, now))
    if _distinct(now[:FIRST_BLOCKS]).max() > LEVELS:
        return None
    if _distinct(now).max() > LEVELS or _distinct(before).double().median() <= LEVELS:
        return None
    order = before.argsort(dim=1, stable=True)
    steps = now.gather(1, order).diff(dim=1)
    is_tied = before.gather(1, order).diff(dim=1) == 0
    return not bool(((steps < 0) & ~is_tied).any())


def _distinct(blocks: Tensor) -> Tensor:
    """Count the different values of each row."""
    return (blocks.sort(1).values.diff(dim=1) != 0).sum(1) + 1


def is_unstructured(delta: Tensor, false_structure: float) -> bool:
    """Tell if no singular value of a change stands out of those of independent entries.

    Rows and columns are scaled to the same mean square first. The largest squared singular value of
    independent entries then has the law of Tracy and Widom (Johnstone, Annals of Statistics 29,
    2001), whatever the law of the entries is.

    Args:
        false_structure: probability that independent entries are taken for a structure.
    """
    delta = delta.double()
    delta = delta[delta.any(1)][:, delta.any(0)]
    if min(delta.shape) < MIN_SIDE:
        return False
    for _ in range(BALANCING_STEPS):
        delta = delta / delta.square().mean(1, keepdim=True).sqrt()
        delta = delta / delta.square().mean(0, keepdim=True).sqrt()
    n, p = math.sqrt(max(delta.shape) - 1), math.sqrt(min(delta.shape))
    edge, scale = (n + p) ** 2, (n + p) * (1 / n + 1 / p) ** (1 / 3)
    largest = float(squared_singular_values(delta)[0])
    return tracy_widom_tail((largest - edge) / scale) > false_structure


def tracy_widom_tail(value: float) -> float:
    """Return the probability of a larger value by the first law of Tracy and Widom.

    The leading term of the right tail, which is an upper bound from 1 on; 1 below 1.
    """
    if value < 1:
        return 1.0
    return math.exp(-2 / 3 * value**1.5) / (4 * math.sqrt(math.pi) * value**0.75)
