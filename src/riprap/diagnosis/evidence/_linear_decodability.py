"""Linear decodability: can linear probes read a behavior's classes from the residual stream?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior
from riprap.diagnosis._base import Estimate, Progress
from riprap.diagnosis._weight_sources import Reference, Weights, reference_model
from riprap.diagnosis.evidence._cv_folds import (
    class_labels,
    insufficient_rows,
    row_groups,
    stratified_group_folds,
)
from riprap.diagnosis.evidence._residual_stream import behavior_residual_stream, residual_layers
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state
from riprap.signals.features import balanced_ridge
from riprap.types import ReadingStatus

SHUFFLES = 40
DRAWS = 1000


@dataclass(frozen=True)
class LayerProbe:
    """Balanced accuracies of linear probes at one layer (mean over classes).

    Attributes:
        now, reference: on held-out rows, of the model and of the reference.
        control, reference_control: mean accuracy with shuffled labels.
        control_high, reference_control_high: its 95th percentile over the shuffles.
    """

    layer: str
    now: float
    reference: float
    control: float
    control_high: float
    reference_control: float
    reference_control_high: float


@dataclass(frozen=True)
class Decodability:
    """Result of `linear_decodability`.

    Attributes:
        behavior: name of the behavior.
        classes: number of classes; chance is 1/classes.
        layers: from the embeddings up; empty if there are too few rows.
        best: the layer with the highest accuracy in the reference.
        ceiling: 95th percentile over the shuffles of the best layer's accuracy with shuffled
            labels. The reference must exceed it at `best`, because the best of many layers looks
            good by chance.
        retained: (now − control) / (reference − control) at `best`, with a 95 % percentile
            interval over 1000 stratified draws of probes; fits and layer are not redrawn. None
            unless `status` is MEASURED.
        status, detail: INSUFFICIENT with a reason if nothing can be concluded.
    """

    behavior: str
    classes: int
    layers: tuple[LayerProbe, ...] = field(default=(), repr=False)
    best: str | None = None
    ceiling: float | None = None
    retained: Estimate | None = None
    status: ReadingStatus = ReadingStatus.MEASURED
    detail: str = ""


@dataclass(frozen=True)
class _ProbeAccuracy:
    """At one layer of one model: correct rows, accuracy, and accuracies with shuffled labels."""

    correct: np.ndarray
    accuracy: float
    shuffled: np.ndarray


def linear_decodability(
    model: nn.Module,
    behavior: Behavior,
    *,
    labels: Sequence[int] | Tensor | None = None,
    contrast: Behavior | None = None,
    groups: Sequence[Hashable] | None = None,
    reference: Reference = None,
    weights_on_disk: Weights | None = None,
    layers: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Decodability:
    """Fit linear probes at each layer of the model and of its reference, and compare them.

    The probes read the residual stream at the last prompt token. Each is a ridge regression of one
    class against the rest with equal class weights, cross-validated: neither a row nor a row of its
    group is in the training folds. The control uses shuffled labels.

    Args:
        labels: shape (n_probes,), the class of each probe. None: the two sides if there is a
            `contrast`, else the targets of a behavior of next tokens.
        contrast: the opposite behavior, such as over_refusal for refusal.
        groups: topic of each row, such as a person; rows of one group share a fold. None: equal
            prompts do.
        reference: the model before training; see `reference_model`.
        weights_on_disk: see `restore_weights`.
        layers: modules to read; None: embeddings and all blocks.
        folds: number of cross-validation folds.
        seed: of folds, shuffles and draws.

    Source: after Alain and Bengio, 1610.01644 (probes by layer); Hewitt and Liang, 1909.03368
    (control by random labels).

    Raises:
        BehaviorError: no classes, or labels that do not match the probes.
        ConfigError: no reference, or an impossible number of folds.
    """
    behaviors = [behavior] if contrast is None else [behavior, contrast]
    classes = class_labels(behavior, labels, contrast)
    if not 2 <= folds <= len(classes):
        raise ConfigError(f"folds={folds}; pass a number from 2 to {len(classes)}, the rows")
    count = int(classes.max()) + 1
    if why := insufficient_rows(classes, count, folds):
        return Decodability(behavior.name, count, status=ReadingStatus.INSUFFICIENT, detail=why)
    noise = np.random.default_rng(seed)
    row_group = row_groups(behaviors, groups, len(classes))
    fold = stratified_group_folds(classes, row_group, folds, noise)
    orders = [torch.arange(len(classes))]
    orders += [torch.from_numpy(noise.permutation(len(classes))) for _ in range(SHUFFLES)]
    names, now, before = _read_streams(model, behaviors, reference, weights_on_disk, layers)
    accuracies: list[tuple[_ProbeAccuracy, _ProbeAccuracy]] = []
    for index, sides in enumerate(zip(now, before, strict=True)):
        of_model, of_reference = (_probe_accuracy(rows, classes, fold, orders) for rows in sides)
        accuracies.append((of_model, of_reference))
        if progress is not None:
            progress(index + 1, len(names))
    return _summarize(behavior.name, names, accuracies, classes, noise)


def _read_streams(
    model: nn.Module,
    behaviors: list[Behavior],
    reference: Reference,
    weights_on_disk: Weights | None,
    layers: Sequence[str] | None,
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Names of the layers, and the rows of each, of the model and of the reference."""

    def read(at: nn.Module) -> tuple[list[str], list[Tensor]]:
        names = residual_layers(at, layers)
        streams = [behavior_residual_stream(at, behavior, names) for behavior in behaviors]
        return names, [torch.cat([stream[name] for stream in streams]) for name in names]

    with preserve_training_state(model):  # disabling adapters changes `requires_grad`
        names, now = read(model)
        with reference_model(model, reference, weights_on_disk) as base:
            base_names, before = read(base)
    if len(base_names) != len(names):
        raise ConfigError(f"the model has {len(names)} layers and the reference {len(base_names)}")
    return names, now, before


def _probe_accuracy(
    rows: Tensor, classes: Tensor, fold: Tensor, orders: list[Tensor]
) -> _ProbeAccuracy:
    """Accuracy with the labels in each of `orders`; the first is the true order."""
    # Relative to one row, so that equal rows are exactly 0 and no rounding error is learned.
    rows = rows.double() - rows[:1].double()
    if rows.shape[1] > len(rows):  # rotate into the span of the rows; inner products stay the same
        rows = torch.linalg.qr(rows.T, mode="r").R.T
    correct = [_correct_rows(rows, classes[order], fold) for order in orders]
    pairs = zip(correct, orders, strict=True)
    accuracies = [_balanced_accuracy(right, classes[order]) for right, order in pairs]
    return _ProbeAccuracy(correct[0].numpy(), accuracies[0], np.array(accuracies[1:]))


def _correct_rows(rows: Tensor, classes: Tensor, fold: Tensor) -> Tensor:
    correct = torch.zeros(len(rows), dtype=torch.bool)
    for held_out in (fold == index for index in fold.unique()):
        kinds, targets = classes[~held_out].unique(return_inverse=True)
        normals, middle = balanced_ridge(rows[~held_out], targets, len(kinds))
        predicted = kinds[((rows[held_out] - middle) @ normals).argmax(-1)]
        correct[held_out] = predicted == classes[held_out]
    return correct


def _balanced_accuracy(correct: Tensor, classes: Tensor) -> float:
    sizes = classes.bincount().double()
    return float((classes.bincount(correct.double()) / sizes).mean())


def _summarize(
    name: str,
    layers: list[str],
    accuracies: list[tuple[_ProbeAccuracy, _ProbeAccuracy]],
    classes: Tensor,
    noise: np.random.Generator,
) -> Decodability:
    def high(values: np.ndarray) -> float:
        return float(np.quantile(values, 0.95))

    probes = tuple(
        LayerProbe(
            layer,
            now.accuracy,
            before.accuracy,
            *(float(now.shuffled.mean()), high(now.shuffled)),
            *(float(before.shuffled.mean()), high(before.shuffled)),
        )
        for layer, (now, before) in zip(layers, accuracies, strict=True)
    )
    best = int(np.argmax([probe.reference for probe in probes]))
    ceiling = high(np.max([before.shuffled for _, before in accuracies], axis=0))
    fields: dict[str, Any] = {"layers": probes, "best": layers[best], "ceiling": ceiling}
    count = int(classes.max()) + 1
    if probes[best].reference <= ceiling:
        why = (
            f"even in the reference, the accuracy at the best layer is only "
            f"{probes[best].reference:.2f}, and shuffled labels reach {ceiling:.2f}"
        )
        return Decodability(name, count, **fields, status=ReadingStatus.INSUFFICIENT, detail=why)
    retained = _retained(accuracies[best], classes.numpy(), noise)
    return Decodability(name, count, **fields, retained=retained)


def _retained(
    accuracies: tuple[_ProbeAccuracy, _ProbeAccuracy],
    classes: np.ndarray,
    noise: np.random.Generator,
) -> Estimate:
    """Share of the reference's accuracy above its control, with its interval over probes."""
    draws = np.zeros((2, DRAWS))
    kinds = np.unique(classes)
    for kind in kinds:
        rows = np.flatnonzero(classes == kind)
        drawn = noise.choice(rows, (DRAWS, len(rows)))
        draws += [side.correct[drawn].mean(1) / len(kinds) for side in accuracies]
    above = draws - np.array([[side.shuffled.mean()] for side in accuracies])
    ratios = np.full(DRAWS, np.inf)
    np.divide(above[0], above[1], out=ratios, where=above[1] > 0)
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    now, before = (side.accuracy - float(side.shuffled.mean()) for side in accuracies)
    return Estimate(now / before, float(low), float(high), len(classes))
