"""Linear probes that separate a behavior's activations from those of its contrast."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from riprap.behaviors import Behavior
from riprap.signals._base import FeatureSignal, ProbeView, not_run
from riprap.types import Reading, ReadingStatus

FOLDS = 5
RIDGE = 0.01  # times the total variance about the midpoint of the two means

Plane = tuple[Tensor, Tensor]  # normal, shape (d,), and a point on the plane, shape (d,)


def balanced_ridge(rows: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression of each class against the rest, with equal weight for all classes.

    Solved in the dual form, so that n rows in d ≫ n dimensions cost one (n, n) system. The target
    is 1 for the own class and 0 for the others, minus its mean 1/count, about the midpoint of the
    class means: a large class has no advantage.

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
    # With equal rows, such as embeddings of the same last token, the Gramian is 0.
    ridge = (RIDGE * gramian.trace()).clamp_min(torch.finfo(rows.dtype).tiny)
    lifted = gramian + ridge * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return rows.T @ torch.linalg.solve(lifted, (own - 1 / count) * weights), middle


def fit_plane(here: Tensor, there: Tensor) -> Plane:
    """Fit a ridge regression on ±1 with equal weight for both sides; see `balanced_ridge`.

    Args:
        here, there: shapes (n, d), (m, d).
    """
    classes = torch.tensor([0] * len(here) + [1] * len(there), device=here.device)
    normals, middle = balanced_ridge(torch.cat([here, there]), classes, 2)
    return normals[:, 0] - normals[:, 1], middle


def accuracy(plane: Plane, here: Tensor, there: Tensor) -> float:
    """Compute the share of rows on their own side, mean over both sides; chance is 0.5."""
    normal, middle = plane
    shares = [
        ((rows - middle) @ normal * sign > 0).double().mean()
        for rows, sign in ((here, 1), (there, -1))
    ]
    return float(sum(shares)) / 2


def train_test_masks(here: int, there: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield for each fold the training and test rows of both sides, as masks.

    Fold f tests on rows f, f + k, …, with k = 5 or the number of rows of the smaller side.
    """
    k = min(FOLDS, here, there)
    for fold in range(k):
        out = [torch.arange(count) % k == fold for count in (here, there)]
        yield ~out[0], out[0], ~out[1], out[1]


class LinearProbe(FeatureSignal):
    """Accuracy of linear probes between the activations of a behavior and of its contrast.

    `linear_probe_frozen`, fitted at θ₀, shows whether the behavior is still represented in the same
    direction; `linear_probe_refitted`, fitted on the current activations, whether it is still
    represented at all. Both are cross-validated with the same folds: a linear probe is tested on
    inputs that it was never fitted to, not even at θ₀, because n < d rows are always separable. So
    both agree at θ₀. Balanced over the two sides, chance 0.5. `INSUFFICIENT` with fewer than two
    rows on a side.
    """

    name = "linear_probe"
    state_attrs = ("planes", "shapes")

    def __init__(self) -> None:
        self.planes: dict[str, list[Plane]] = {}
        self.shapes: dict[str, tuple[int, int]] = {}

    def start(self, view: ProbeView) -> None:
        """Fit the frozen linear probes, one per fold."""
        for behavior in view.behaviors:
            here = self.activations(view, behavior.name)
            there = self.activations(view, behavior.contrast)
            if here is not None and there is not None and min(len(here), len(there)) > 1:
                here, there = here.double(), there.double()
                self.shapes[behavior.name] = len(here), len(there)
                self.planes[behavior.name] = [
                    fit_plane(here[train_here], there[train_there])
                    for train_here, _, train_there, _ in train_test_masks(len(here), len(there))
                ]

    def read(self, view: ProbeView, behavior: Behavior, activations: Tensor) -> list[Reading]:
        """Return both accuracies."""
        step, name, layer = view.step, behavior.name, view.layer or ""
        there = self.activations(view, behavior.contrast)
        if name not in self.planes:
            return self._missing(view, behavior, there) if step == 0 else []
        if there is None or (len(activations), len(there)) != self.shapes[name]:
            return [not_run(step, name, self.name, "the probes changed shape")]
        here, there = activations.double(), there.double()
        frozen, refitted = [], []
        splits = train_test_masks(len(here), len(there))
        for plane, split in zip(self.planes[name], splits, strict=True):
            train_here, test_here, train_there, test_there = split
            frozen.append(accuracy(plane, here[test_here], there[test_there]))
            fresh = fit_plane(here[train_here], there[train_there])
            refitted.append(accuracy(fresh, here[test_here], there[test_there]))
        return [
            Reading.of(step, name, f"{self.name}_{kind}", sum(values) / len(values), "share", layer)
            for kind, values in (("frozen", frozen), ("refitted", refitted))
        ]

    def _missing(self, view: ProbeView, behavior: Behavior, there: Tensor | None) -> list[Reading]:
        if there is None:
            reason = "no contrast: name a monitored behavior, Behavior(contrast=...)"
            return [not_run(view.step, behavior.name, self.name, reason)]
        reason = "fewer than two rows on one side: no row can be held out"
        state = ReadingStatus.INSUFFICIENT
        return [Reading(view.step, behavior.name, self.name, state=state, detail=reason)]
