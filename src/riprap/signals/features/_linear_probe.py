"""Linear probes: can a behaviour's activations still be told from its contrast's?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView, not_run
from riprap.types import Reading, ReadingStatus

FOLDS = 5
RIDGE = 0.01  # of the total variance about the midpoint of the two means

Plane = tuple[Tensor, Tensor]  # normal, shape (d,), and a point on the plane, shape (d,)


def balanced_ridge(rows: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ridge regression of each class against the rest that gives all classes equal weight.

    Solved in its dual form, so that n rows in d ≫ n dimensions cost one (n, n) system. What is
    regressed on is 1 for the own class and 0 for the others, less its mean 1/count, about the
    midpoint of the classes' means: so the largest class wins nothing by its size.

    Args:
        rows: shape (n, d).
        classes: shape (n,), long, each of 0, …, count − 1 at least once.

    Returns:
        normals, shape (d, count): a row belongs to the class with the largest product of its
        distance from the point, shape (d,), with the normal.
    """
    own = torch.nn.functional.one_hot(classes, count).to(rows)
    sizes = own.sum(0)
    middle = (own.T @ rows / sizes[:, None]).mean(0)
    weights = (own / sizes).sum(1).sqrt()[:, None]
    rows = (rows - middle) * weights
    gramian = rows @ rows.T
    # Rows that are all alike, such as the embeddings of one last token, leave nothing to solve.
    ridge = (RIDGE * gramian.trace()).clamp_min(torch.finfo(rows.dtype).tiny)
    lifted = gramian + ridge * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return rows.T @ torch.linalg.solve(lifted, (own - 1 / count) * weights), middle


def fit_plane(here: Tensor, there: Tensor) -> Plane:
    """Ridge regression on ±1 that gives both sides equal weight; see `separated`.

    Args:
        here, there: shapes (n, d), (m, d).
    """
    classes = torch.tensor([0] * len(here) + [1] * len(there), device=here.device)
    normals, middle = balanced_ridge(torch.cat([here, there]), classes, 2)
    return normals[:, 0] - normals[:, 1], middle


def accuracy(plane: Plane, here: Tensor, there: Tensor) -> float:
    """Share of rows on their own side, mean over the two sides; chance is 0.5."""
    normal, middle = plane
    shares = [
        ((rows - middle) @ normal * sign > 0).double().mean()
        for rows, sign in ((here, 1), (there, -1))
    ]
    return float(sum(shares)) / 2


def cross_validation_folds(here: int, there: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each fold the kept and the left-out rows of either side, as masks; each at least one.

    Fold f leaves out rows f, f + k, …, k = 5 or what the smaller side allows.
    """
    k = min(FOLDS, here, there)
    for fold in range(k):
        out = [torch.arange(count) % k == fold for count in (here, there)]
        yield ~out[0], out[0], ~out[1], out[1]


class LinearProbe(FeatureSignal):
    """Accuracy of linear probes between a behaviour's activations and its contrast's.

    `linear_probe_frozen`: fitted at θ₀, asked of today's activations: is the behaviour still where
    it was? `linear_probe_refitted`: fitted today: is it still there at all? Both are
    cross-validated with the same folds: a row is judged by probes that never saw its input, not
    even at θ₀, or n < d rows would always be told apart. So the two agree at θ₀. Balanced over
    the two sides, chance 0.5. `INSUFFICIENT` with fewer than two rows on a side.
    """

    name = "linear_probe"

    def __init__(self) -> None:
        self.planes: dict[str, list[Plane]] = {}
        self.shapes: dict[str, tuple[int, int]] = {}

    def start(self, view: ProbeView) -> None:
        """Fit the frozen probes, one a fold."""
        for behavior in view.behaviors:
            here = self.activations(view, behavior.name)
            there = self.activations(view, behavior.contrast)
            if here is not None and there is not None and min(len(here), len(there)) > 1:
                here, there = here.double(), there.double()
                self.shapes[behavior.name] = len(here), len(there)
                self.planes[behavior.name] = [
                    fit_plane(here[kept], there[also])
                    for kept, _, also, _ in cross_validation_folds(len(here), len(there))
                ]

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Two accuracies."""
        step, name, layer = view.step, behavior.name, view.layer or ""
        there = self.activations(view, behavior.contrast)
        if name not in self.planes:
            return self._missing(view, behavior, there) if step == 0 else []
        if there is None or (len(activations), len(there)) != self.shapes[name]:
            return [not_run(step, name, self.name, "the probes changed shape")]
        here, there = activations.double(), there.double()
        frozen, refitted = [], []
        splits = cross_validation_folds(len(here), len(there))
        for plane, (kept, out, also, other) in zip(self.planes[name], splits, strict=True):
            frozen.append(accuracy(plane, here[out], there[other]))
            fresh = fit_plane(here[kept], there[also])
            refitted.append(accuracy(fresh, here[out], there[other]))
        return [
            Reading.of(step, name, f"{self.name}_{kind}", sum(found) / len(found), "share", layer)
            for kind, found in (("frozen", frozen), ("refitted", refitted))
        ]

    def _missing(self, view: ProbeView, behavior: Behavior, there: Tensor | None) -> list[Reading]:
        if there is None:
            why = "no other side: name a watched behaviour as one, Behavior(contrast=...)"
            return [not_run(view.step, behavior.name, self.name, why)]
        why = "fewer than two rows on one side: nothing can be held out"
        state = ReadingStatus.INSUFFICIENT
        return [Reading(view.step, behavior.name, self.name, state=state, detail=why)]
