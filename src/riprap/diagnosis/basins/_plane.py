"""The basin on a plane through the checkpoint, and over the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from riprap._distributed import unwrap_model
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis._weight_sources import Weights, fitting, kept, move
from riprap.diagnosis.basins._perturbation import ground, moved, stored
from riprap.diagnosis.basins._points import Lookout
from riprap.diagnosis.basins._profile import Array, Basin, grid
from riprap.diagnosis.basins._sweep import basin


@dataclass(frozen=True)
class Plane:
    """Behaviours on a grid of θ + α d₁ + β d₂.

    Attributes:
        alphas: shape (points,), of both α and β.
        floors: by behaviour.
        scores: by behaviour, shape (points, points), the first axis is α.
        margins: the same for the mean of the margins that are finite; NaN where none is.
    """

    seed: int
    alphas: Array
    floors: dict[str, float]
    scores: dict[str, Array]
    margins: dict[str, Array]


def basin_plane(
    model: nn.Module,
    behaviors: Sequence[Behavior],
    *,
    points: int = 21,
    radius: float = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plane:
    """Scores on a plane of two directions, orthogonal in each weight, and ‖d₁‖ = ‖d₂‖ = ‖θ‖.

    d₁ is the first direction of `basin` with the same seed; d₂ is its second one, less its part
    along d₁. As there, the model is put back bit by bit.

    Args:
        points: of α and of β, an odd number; points² are measured.
        progress: called after each point with the points done and in all.

    Raises:
        ConfigError, BehaviorError: see `basin`.
    """
    model = unwrap_model(model)
    alphas = grid(points, radius)
    lookout = Lookout(model, behaviors)
    shape = (points, points)
    scores = {behavior.name: np.empty(shape) for behavior in behaviors}
    margins = {behavior.name: np.empty(shape) for behavior in behaviors}
    with ground(model, seed) as place:
        first, second = place.ray(0), place.across(0, 1)
        for seen, (i, j) in enumerate(np.ndindex(shape), start=1):
            place.put((first, float(alphas[i])), (second, float(alphas[j])))
            point = lookout.look()
            for name, values in point.margins.items():
                finite = values[np.isfinite(values)]
                scores[name][i, j] = point.scores[name]
                margins[name][i, j] = finite.mean() if len(finite) else np.nan
            if progress is not None:
                progress(seen, points**2)
    floors = {behavior.name: behavior.floor for behavior in behaviors}
    return Plane(seed, alphas, floors, scores, margins)


def basin_drift(
    model: nn.Module,
    checkpoints: Mapping[str, Weights],
    behaviors: Sequence[Behavior],
    directions: int = 20,
    *,
    points: int = 21,
    radius: float = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Basin]:
    """The basin at each of several weights of one model, along the same directions.

    The same draws at each, scaled to the weights there. The model's own weights come back bit by
    bit; they wait on disk, so that memory is one model's and a checkpoint's largest weight.

    Args:
        checkpoints: weights by the names of `model.named_parameters()`, such as a
            `weights.Folder`, by what they are to be called, in the order of the run.
        progress: called after each point with the points done and in all.

    Returns:
        a basin each, in the same order.

    Raises:
        ConfigError, BehaviorError: see `basin`; or weights of another model.
    """
    model = unwrap_model(model)
    moved(model)  # refuses what cannot be moved, before anything is
    names = {label: fitting(model, weights) for label, weights in checkpoints.items()}
    found: dict[str, Basin] = {}

    def tell(done: int, each: int) -> None:
        if progress is not None:
            progress(len(found) * each + done, len(checkpoints) * each)

    with stored(dict(model.named_parameters())) as home, kept(model, home):
        for label, weights in checkpoints.items():
            move(model, home, weights, 1.0, names[label])
            found[label] = basin(
                model,
                behaviors,
                directions,
                points=points,
                radius=radius,
                seed=seed,
                progress=tell,
            )
    return found
