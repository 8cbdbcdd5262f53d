"""How wide the ground is on which a model still behaves: VISAGE, by many directions at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from riprap._distributed import unwrap_model
from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis.basins._perturbation import Ground, ground
from riprap.diagnosis.basins._points import Judge, Lookout, Point
from riprap.diagnosis.basins._profile import Array, Basin, Profile, grid
from riprap.diagnosis.basins._resume import Log, Row, on_every_rank, place_among_ranks
from riprap.errors import ConfigError


def basin(
    model: nn.Module,
    behaviors: Sequence[Behavior],
    directions: int = 100,
    *,
    points: int = 21,
    radius: float = 0.5,
    seed: int = 0,
    generated: Mapping[str, Judge] | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> Basin:
    """Scores along random directions d: the model at θ + α d, and back again bit by bit.

    d is Gaussian, ‖d‖ = ‖θ‖ in each weight; normalisation layers stay, tied weights move once,
    and so does what lies under an adapter (see `basin_ground.moved`). Memory is one model's; the
    disk holds another for the time being, among the temporary files. Behaviours are taken as they
    are: one that learns something at the start must have been started (`probing.start`).

    Several ranks, each with a model of its own, share the directions; all return the same.

    Args:
        behaviors: all are measured at each point. A refusal's over-refusal belongs beside it: a
            model too far off says nothing sensible, and then refuses nothing.
        directions: how many.
        points: of α along each, an odd number, so that one is the checkpoint.
        radius: α goes from −radius to radius.
        generated: by behaviour, `judge(model)`: the share of its probes that the model's own
            answers still keep. Slow; the same seed with fewer directions takes the first of them.
        resume: a file to which each direction is added once it is done, and with which an
            interrupted sweep goes on. More directions may be asked for than are in it.
        progress: called after each point with this rank's points done and to be done.

    Source: VISAGE of Peng et al., 2405.17374; many directions as in 2604.17215.

    Raises:
        ConfigError: arguments that cannot work; sharded, quantized or non-finite weights; a
            `resume` file of another sweep; ranks with different weights.
        BehaviorError: margins of a wrong shape, or a judge that gives no share.
    """
    model = unwrap_model(model)
    alphas = grid(points, radius)
    if type(directions) is not int or directions < 1:
        raise ConfigError(f"directions is {directions!r}; a whole number of 1 or more is needed")
    lookout = Lookout(model, behaviors, generated)
    with ground(model, seed) as place:
        sweep = _Sweep(place, lookout, alphas, seed)
        begun = on_every_rank(lambda: sweep.begin(resume))
        if len({weights for weights, _ in begun}) > 1:
            raise ConfigError(
                "the ranks hold models of different weights; they can share the directions of one "
                "model only"
            )
        done = {number: row for _, rows in begun for number, row in rows.items()}
        rank, world = place_among_ranks()
        own = [number for number in range(directions) if number not in done][rank::world]
        for rows in on_every_rank(lambda: sweep.run(own, progress)):
            done |= rows
    return _gathered([done[number] for number in range(directions)], behaviors, alphas, seed)


class _Sweep:
    """The rows of a model's directions, each logged once it is whole."""

    def __init__(self, place: Ground, lookout: Lookout, alphas: Array, seed: int) -> None:
        self._place, self._lookout, self._alphas, self._seed = place, lookout, alphas, seed
        self._centre: Point
        self._log: Log

    def begin(self, resume: str | Path | None) -> tuple[str, dict[int, Row]]:
        """Look at the checkpoint itself; its checksum, and the rows that are there already."""
        self._centre = self._lookout.look()
        self._log = Log(resume, self._identity())
        return self._place.checksum, self._log.done

    def run(self, numbers: Sequence[int], progress: Progress | None) -> dict[int, Row]:
        """The rows of some directions."""
        found = {}
        seen, to_see = 0, len(numbers) * (len(self._alphas) - 1)
        for number in numbers:
            ray = self._place.ray(number)
            along = []
            for alpha in self._alphas:
                if alpha == 0:
                    along.append(self._centre)
                    continue
                self._place.put((ray, float(alpha)))
                along.append(self._lookout.look())
                seen += 1
                if progress is not None:
                    progress(seen, to_see)
            found[number] = _row(along)
            self._log.add(number, found[number])
        return found

    def _identity(self) -> dict[str, Any]:
        """What the rows belong to, as JSON holds it."""
        return {
            "basin": 1,
            "weights": self._place.checksum,
            "seed": self._seed,
            "points": [float(alpha) for alpha in self._alphas],
            "judges": sorted(self._centre.judged),
            "behaviors": list(self._centre.scores),
            "margins": {
                name: [float(m) if math.isfinite(m) else None for m in values]
                for name, values in self._centre.margins.items()
            },
        }


def _row(along: Sequence[Point]) -> Row:
    kinds: dict[str, list[Mapping[str, float]]] = {
        "scores": [point.scores for point in along],
        "doubtful": [point.doubtful for point in along],
        "judged": [point.judged for point in along],
    }
    return {
        kind: {name: [float(point[name]) for point in seen] for name in seen[0]}
        for kind, seen in kinds.items()
    }


def _gathered(
    rows: Sequence[Row], behaviors: Sequence[Behavior], alphas: Array, seed: int
) -> Basin:
    def table(kind: str, name: str) -> Array:
        return np.array([row[kind][name] for row in rows], dtype=np.float64)

    return Basin(
        seed,
        {
            behavior.name: Profile(
                name=behavior.name,
                floor=behavior.floor,
                alphas=alphas,
                scores=table("scores", behavior.name),
                doubtful=int(table("doubtful", behavior.name).sum()),
                judged=table("judged", behavior.name)
                if behavior.name in rows[0]["judged"]
                else None,
            )
            for behavior in behaviors
        },
    )
