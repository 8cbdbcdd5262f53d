"""Linear path: behaviors on the straight line from a model to its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis._interpolation import path_to_reference
from riprap.diagnosis._weight_sources import NameFilter, Reference, Weights, all_names
from riprap.errors import ConfigError


@dataclass(frozen=True)
class PathProfile:
    """One behavior along the path.

    Attributes:
        alphas: shape (points,), from 0 (the model) to 1 (the reference).
        scores: shape (points,), share of margins above 0.
        margins: shape (points,), mean margin, in the behavior's unit.
        floor: of the behavior.
        insufficient: why margins do not measure the behavior at some point; empty if they do.
    """

    alphas: np.ndarray = field(repr=False)
    scores: np.ndarray
    margins: np.ndarray = field(repr=False)
    floor: float
    insufficient: str = ""

    @property
    def barrier(self) -> float:
        """Largest drop of the score below the line between its ends; 0 if there is none.

        Source: Entezari et al., 2110.06296, section 2, with a score instead of a loss.
        """
        return _barrier(self.alphas, self.scores)

    @property
    def margin_barrier(self) -> float:
        """The same for the mean margin, in its unit."""
        return _barrier(self.alphas, self.margins)

    @property
    def dip(self) -> float:
        """Largest drop of the score below the lower of its ends; 0 if there is none.

        Stricter than the error barrier of Frankle et al., 1912.05671, which is measured from the
        mean of the ends.
        """
        return float(min(self.scores[0], self.scores[-1]) - self.scores.min())

    @property
    def margin_dip(self) -> float:
        """The same for the mean margin, in its unit."""
        return float(min(self.margins[0], self.margins[-1]) - self.margins.min())


@dataclass(frozen=True)
class LinearPath:
    """Result of `linear_path`: a profile for each behavior, by name."""

    behaviors: dict[str, PathProfile]

    def first_at_floor(self, name: str, floor: float | None = None) -> float | None:
        """Return the smallest α at which the score is at its floor; None if there is none.

        Args:
            floor: None: the behavior's own.
        """
        profile = self.behaviors[name]
        reached = profile.scores >= (profile.floor if floor is None else floor)
        return float(profile.alphas[reached.argmax()]) if reached.any() else None


def linear_path(
    model: nn.Module,
    reference: Reference,
    behaviors: Sequence[Behavior],
    *,
    points: int = 11,
    name_filter: NameFilter | None = None,
    weights_on_disk: Weights | None = None,
    progress: Progress | None = None,
) -> LinearPath:
    """Measure scores and mean margins on the path θ + α (θ₀ − θ), in place.

    The model is restored bit by bit.

    Args:
        reference: the model before training, or its weights; None: the scale of LoRA adapters goes
            to 0.
        behaviors: if a behavior must be calibrated, calibrate it at the reference first.
        points: number of α, equally spaced, with both ends.
        name_filter: which weights move, by name; None: all.
        weights_on_disk: see `restore_weights`.

    Raises:
        ConfigError: fewer than two points, no behaviors, two of the same name, or a reference that
            cannot be used (see `path_to_reference`).
    """
    names = [behavior.name for behavior in behaviors]
    if points < 2 or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"linear path with {points} points and behaviors {names}: pass two points or more, and "
            "behaviors with different names"
        )
    alphas = np.linspace(0, 1, points)
    results: dict[str, list[evaluation.ProbeResult]] = {name: [] for name in names}
    with path_to_reference(model, reference, weights_on_disk, name_filter or all_names) as path:
        for index, alpha in enumerate(alphas.tolist()):
            path.set_alpha(alpha)
            for group in evaluation.group_by_forward_pass(behaviors, model):
                for name, result in evaluation.evaluate_batch(group, model).items():
                    results[name].append(result)
            if progress is not None:
                progress(index + 1, points)
    return LinearPath({b.name: _profile(alphas, results[b.name], b.floor) for b in behaviors})


def _profile(
    alphas: np.ndarray, results: list[evaluation.ProbeResult], floor: float
) -> PathProfile:
    return PathProfile(
        alphas,
        np.array([(result.margins > 0).mean() for result in results]),
        np.array([result.margins.mean() for result in results]),
        floor,
        next((result.insufficient for result in results if result.insufficient), ""),
    )


def _barrier(alphas: np.ndarray, values: np.ndarray) -> float:
    line = values[0] + alphas * (values[-1] - values[0])
    return float(max(0.0, (line - values).max()))
