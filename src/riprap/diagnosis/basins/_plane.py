"""The basin on a plane through the checkpoint, and over the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from riprap._checks import checked
from riprap._distributed import unwrap_model
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis._weight_sources import Weights, interpolate_, matching_names, restore_weights
from riprap.diagnosis.basins._perturbation import (
    perturbed_parameters,
    perturbed_weights,
    store_on_disk,
)
from riprap.diagnosis.basins._points import PointEvaluator
from riprap.diagnosis.basins._profile import Array, Basin, grid
from riprap.diagnosis.basins._sweep import basin


@dataclass(frozen=True)
class Plane:
    """Scores and margins on a grid of θ + α d₁ + β d₂.

    Attributes:
        alphas: shape (points,), of both α and β.
        floors: by behavior.
        scores: by behavior, shape (points, points); the first axis is α.
        margins: the same for the mean of the finite margins; NaN if there is none.
    """

    seed: int
    alphas: Array
    floors: dict[str, float]
    scores: dict[str, Array]
    margins: dict[str, Array]


@checked
def basin_plane(
    model: nn.Module,
    behaviors: Sequence[Behavior],
    *,
    points: int = 21,
    radius: float = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plane:
    """Measure scores on a plane of two directions with ‖d₁‖ = ‖d₂‖ = ‖θ‖.

    The directions are orthogonal in each weight. d₁ is the first direction of `basin` with the same
    seed; d₂ is the second one without its component along d₁. The model is restored bit by bit.

    Args:
        points: number of α and of β, odd; points² are measured.
        progress: called after each point with the points done and their total.

    Raises:
        ConfigError, BehaviorError: see `basin`.
    """
    model = unwrap_model(model)
    alphas = grid(points, radius)
    evaluator = PointEvaluator(model, behaviors)
    shape = (points, points)
    scores = {behavior.name: np.empty(shape) for behavior in behaviors}
    margins = {behavior.name: np.empty(shape) for behavior in behaviors}
    with perturbed_weights(model, seed) as perturbation:
        first, second = perturbation.direction(0), perturbation.orthogonal_to(0, 1)
        for done, (i, j) in enumerate(np.ndindex(shape), start=1):
            perturbation.apply((first, float(alphas[i])), (second, float(alphas[j])))
            point = evaluator.evaluate()
            for name, values in point.margins.items():
                finite = values[np.isfinite(values)]
                scores[name][i, j] = point.scores[name]
                margins[name][i, j] = finite.mean() if len(finite) else np.nan
            if progress is not None:
                progress(done, points**2)
    floors = {behavior.name: behavior.floor for behavior in behaviors}
    return Plane(seed, alphas, floors, scores, margins)


@checked
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
    """Measure the basin at several checkpoints of one model, along the same directions.

    Each checkpoint uses the same draws, scaled to its weights. The model's own weights are stored
    on disk and restored bit by bit. Memory holds one model and the largest weight of a checkpoint.

    Args:
        checkpoints: by label, in the order of the run: weights by the names of
            `model.named_parameters()`, such as a `SafetensorsFolder`.
        progress: called after each point with the points done and their total.

    Returns:
        one basin per checkpoint, in the same order.

    Raises:
        ConfigError, BehaviorError: see `basin`; or weights of another model.
    """
    model = unwrap_model(model)
    perturbed_parameters(model)  # raises for unusable weights before anything is moved
    names = {label: matching_names(model, weights) for label, weights in checkpoints.items()}
    basins: dict[str, Basin] = {}

    def report(done: int, per_basin: int) -> None:
        if progress is not None:
            progress(len(basins) * per_basin + done, len(checkpoints) * per_basin)

    with (
        store_on_disk(dict(model.named_parameters())) as original,
        restore_weights(model, original),
    ):
        for label, weights in checkpoints.items():
            interpolate_(model, original, weights, 1.0, names[label])
            basins[label] = basin(
                model,
                behaviors,
                directions,
                points=points,
                radius=radius,
                seed=seed,
                progress=report,
            )
    return basins
