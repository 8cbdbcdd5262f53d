"""Path: how behaviours fare on the straight way from a model to its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis._interpolation import path_to_reference
from riprap.diagnosis._weight_sources import Reference, NameFilter, Weights, all_names
from riprap.errors import ConfigError


@dataclass(frozen=True)
class PathProfile:
    """One behaviour along the way.

    Attributes:
        shares: shape (points,), 0 the model as it is, 1 the reference.
        scores: shape (points,), share of margins above 0.
        margins: shape (points,), mean margin, in the unit of the behaviour.
        floor: of the behaviour.
        insufficient: why margins do not measure the behaviour at some point; empty where they do.
    """

    alphas: np.ndarray
    scores: np.ndarray
    margins: np.ndarray
    floor: float
    insufficient: str = ""

    @property
    def barrier(self) -> float:
        """How far the score falls under the straight line between its ends, 0 where it does not.

        Source: Entezari et al., 2110.06296, section 2, with a score in place of a loss.
        """
        return _barrier(self.alphas, self.scores)

    @property
    def margin_barrier(self) -> float:
        """The same of the mean margin, in its unit."""
        return _barrier(self.alphas, self.margins)

    @property
    def dip(self) -> float:
        """How far the score falls under the lower of its ends, 0 where it does not.

        Stricter than the error barrier of Frankle et al., 1912.05671, which counts from the mean of
        the ends.
        """
        return float(min(self.scores[0], self.scores[-1]) - self.scores.min())

    @property
    def margin_dip(self) -> float:
        """The same of the mean margin, in its unit."""
        return float(min(self.margins[0], self.margins[-1]) - self.margins.min())


@dataclass(frozen=True)
class LinearPath:
    """What `path` found: each behaviour along the way, by name."""

    behaviors: dict[str, PathProfile]

    def first_at_floor(self, name: str, floor: float | None = None) -> float | None:
        """The smallest share of the way at which a score is at its floor; None: nowhere.

        Args:
            floor: None: the behaviour's own.
        """
        along = self.behaviors[name]
        reached = along.scores >= (along.floor if floor is None else floor)
        return float(along.alphas[reached.argmax()]) if reached.any() else None


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
    """Scores and mean margins on the way θ_t → θ₀, in place; bit by bit as before afterwards.

    Args:
        reference: the model or the weights before; None: the scale of LoRA adapters goes from its
            own to 0.
        behaviors: those that fix something at a start, such as openers, fixed it at the reference.
        points: at equal distances, both ends among them.
        only: which weights go, by name; None: all.
        home: see `kept`.

    Raises:
        ConfigError: fewer than two points, no behaviours or two of one name; else see `way_back`.
    """
    names = [behavior.name for behavior in behaviors]
    if points < 2 or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"path of {points} points and behaviours {names}: two points or more are needed, and "
            "behaviours of different names"
        )
    shares = np.linspace(0, 1, points)
    looks: dict[str, list[probing.ProbeResult]] = {name: [] for name in names}
    with path_to_reference(model, reference, weights_on_disk, name_filter or all_names) as way:
        for index, share in enumerate(shares.tolist()):
            way.set_alpha(share)
            for group in probing.group_by_forward_pass(behaviors, model):
                for name, look in probing.evaluate_batch(group, model).items():
                    looks[name].append(look)
            if progress is not None:
                progress(index + 1, points)
    return LinearPath({b.name: _profile(shares, looks[b.name], b.floor) for b in behaviors})


def _profile(shares: np.ndarray, looks: list[probing.ProbeResult], floor: float) -> PathProfile:
    return PathProfile(
        shares,
        np.array([(look.margins > 0).mean() for look in looks]),
        np.array([look.margins.mean() for look in looks]),
        floor,
        next((look.insufficient for look in looks if look.insufficient), ""),
    )


def _barrier(shares: np.ndarray, values: np.ndarray) -> float:
    line = values[0] + shares * (values[-1] - values[0])
    return float(max(0.0, (line - values).max()))
