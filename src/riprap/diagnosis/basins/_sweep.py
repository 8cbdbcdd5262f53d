"""Sweep many random directions around a checkpoint (VISAGE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from riprap._checks import checked
from riprap._distributed import unwrap_model
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis.basins._perturbation import WeightPerturbation, perturbed_weights
from riprap.diagnosis.basins._points import Judge, Point, PointEvaluator
from riprap.diagnosis.basins._profile import Array, Basin, Profile, grid
from riprap.diagnosis.basins._resume import (
    DirectionRow,
    SweepLog,
    gather_from_ranks,
    rank_and_world_size,
)
from riprap.errors import ConfigError


@checked
def basin(
    model: nn.Module,
    behaviors: Sequence[Behavior],
    directions: int = 100,
    *,
    points: int = 21,
    radius: float = 0.5,
    seed: int = 0,
    judges: Mapping[str, Judge] | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> Basin:
    """Measure scores at θ + α d along random directions d; restore the model bit by bit.

    d is Gaussian with ‖d‖ = ‖θ‖ in each weight. Normalization layers do not move, tied weights move
    once, and under an adapter the base weights move. Memory holds one model, and a temporary file
    another. Behaviors are used as they are: calibrate them first (`evaluation.calibrate`).

    Several ranks, each with its own model, share the directions and all return the same.

    Args:
        behaviors: all are measured at each point. Measure over-refusal beside refusal: far from the
            checkpoint a model says nothing sensible, and refuses nothing.
        directions: number of directions.
        points: number of α per direction, odd, so that one of them is the checkpoint.
        radius: α goes from −radius to radius.
        judges: by behavior, `judge(model)`: the share of its probes that the model's own answers
            pass. Slow; fewer directions of the same seed are the first of them.
        resume: file to which each finished direction is added, and from which an interrupted sweep
            continues, also with more directions.
        progress: called after each point with this rank's points done and their total.

    Source: VISAGE of Peng et al., 2405.17374; many directions as in 2604.17215.

    Raises:
        ConfigError: unusable arguments; sharded, quantized or non-finite weights; a `resume` file
            of another sweep; ranks with different weights.
        BehaviorError: margins of a wrong shape, or a judge that does not return a share.
    """
    model = unwrap_model(model)
    alphas = grid(points, radius)
    if type(directions) is not int or directions < 1:
        raise ConfigError(f"directions is {directions!r}; pass a whole number of 1 or more")
    evaluator = PointEvaluator(model, behaviors, judges)
    with perturbed_weights(model, seed) as perturbation:
        sweep = _Sweep(perturbation, evaluator, alphas, seed)
        begun = gather_from_ranks(lambda: sweep.begin(resume))
        if len({checksum for checksum, _ in begun}) > 1:
            raise ConfigError(
                "the ranks have models with different weights; they can only share the directions "
                "of one model"
            )
        done = {number: row for _, rows in begun for number, row in rows.items()}
        rank, world_size = rank_and_world_size()
        missing = [number for number in range(directions) if number not in done]
        for rows in gather_from_ranks(lambda: sweep.run(missing[rank::world_size], progress)):
            done |= rows
    return _assemble([done[number] for number in range(directions)], behaviors, alphas, seed)


class _Sweep:
    """Measure the directions of one rank; each is logged when it is complete."""

    def __init__(
        self, perturbation: WeightPerturbation, evaluator: PointEvaluator, alphas: Array, seed: int
    ) -> None:
        self._perturbation, self._evaluator = perturbation, evaluator
        self._alphas, self._seed = alphas, seed
        self._center: Point
        self._log: SweepLog

    def begin(self, resume: str | Path | None) -> tuple[str, dict[int, DirectionRow]]:
        """Evaluate the checkpoint; return its checksum and the rows that are logged already."""
        self._center = self._evaluator.evaluate()
        self._log = SweepLog(resume, self._identity())
        return self._perturbation.checksum, self._log.done

    def run(self, numbers: Sequence[int], progress: Progress | None) -> dict[int, DirectionRow]:
        """Return the rows of some directions."""
        rows = {}
        done, total = 0, len(numbers) * (len(self._alphas) - 1)
        for number in numbers:
            direction = self._perturbation.direction(number)
            points = []
            for alpha in self._alphas:
                if alpha == 0:
                    points.append(self._center)
                    continue
                self._perturbation.apply((direction, float(alpha)))
                points.append(self._evaluator.evaluate())
                done += 1
                if progress is not None:
                    progress(done, total)
            rows[number] = _direction_row(points)
            self._log.add(number, rows[number])
        return rows

    def _identity(self) -> dict[str, Any]:
        """Identity of the sweep, as JSON types."""
        return {
            "basin": 1,
            "weights": self._perturbation.checksum,
            "seed": self._seed,
            "points": [float(alpha) for alpha in self._alphas],
            "judges": sorted(self._center.judged),
            "behaviors": list(self._center.scores),
            "margins": {
                name: [float(m) if math.isfinite(m) else None for m in values]
                for name, values in self._center.margins.items()
            },
        }


def _direction_row(points: Sequence[Point]) -> DirectionRow:
    def by_behavior(quantity: str) -> dict[str, list[float]]:
        values = [getattr(point, quantity) for point in points]
        return {name: [float(value[name]) for value in values] for name in values[0]}

    return {quantity: by_behavior(quantity) for quantity in ("scores", "doubtful", "judged")}


def _assemble(
    rows: Sequence[DirectionRow], behaviors: Sequence[Behavior], alphas: Array, seed: int
) -> Basin:
    def table(quantity: str, name: str) -> Array:
        return np.array([row[quantity][name] for row in rows], dtype=np.float64)

    profiles = {}
    for behavior in behaviors:
        name, scores = behavior.name, table("scores", behavior.name)
        doubtful = int(table("doubtful", name).sum())
        judged = table("judged", name) if name in rows[0]["judged"] else None
        profiles[name] = Profile(name, behavior.floor, alphas, scores, doubtful, judged)
    return Basin(seed, profiles)
