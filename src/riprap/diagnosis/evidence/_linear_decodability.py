"""Decodability: can what a behaviour tells apart still be read off the residual stream?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior
from riprap.diagnosis._base import Estimate, Progress
from riprap.diagnosis._weight_sources import Reference, Weights, reference_model
from riprap.diagnosis.evidence._cv_folds import class_labels, stratified_group_folds, row_groups, insufficient_rows
from riprap.diagnosis.evidence._residual_stream import residual_layers, behavior_residual_stream
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state
from riprap.signals.features import balanced_ridge
from riprap.types import ReadingStatus

SHUFFLES = 40
DRAWS = 1000


@dataclass(frozen=True)
class LayerProbe:
    """How well the classes are told apart at one layer: mean over classes of the share told right.

    Attributes:
        now, reference: accuracy on rows that the probe never saw.
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
    """What `decode` found.

    Attributes:
        behavior: its name.
        classes: how many are told apart; chance is 1/classes.
        layers: from the embeddings up; empty where there are too few rows.
        best: the layer at which the reference is best decodable.
        ceiling: 95th percentile over the shuffles of the best layer's accuracy with shuffled
            labels: what the reference at `best` has to beat, since the best of many layers looks
            well by chance alone.
        retained: (now − control) / (reference − control) at `best`, with a 95 % percentile
            interval over 1000 stratified draws of probes; the fits and the choice of the layer are
            not drawn again. None unless `state` is MEASURED.
        state, detail: INSUFFICIENT with a reason where it says nothing about the model.
    """

    behavior: str
    classes: int
    layers: tuple[LayerProbe, ...] = ()
    best: str | None = None
    ceiling: float | None = None
    retained: Estimate | None = None
    status: ReadingStatus = ReadingStatus.MEASURED
    detail: str = ""


@dataclass(frozen=True)
class _ProbeAccuracy:
    """At one layer of one model: whether each row was told right, and the shuffles' accuracies."""

    right: np.ndarray
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
    """Linear probes refitted at each layer, now and at the reference, with shuffled labels beside.

    Read is the residual stream at the last prompt token. A probe is a ridge regression of each
    class against the rest, all classes weighing the same, cross-validated: a row is judged by
    probes that saw neither it nor a row of its group.

    Args:
        labels: shape (n_probes,), the class of each probe. None: two sides, if there is a
            `contrast`, or else the targets of a behaviour of next tokens.
        contrast: the other side, such as over_refusal for refusal.
        groups: what each row is about, such as a person; rows of one group share a fold. None:
            equal prompts do.
        reference: the model before; see `at_reference`.
        home: see `kept`.
        layers: modules to read; None: embeddings and all blocks.
        folds: how many parts of the rows are left out in turn.
        seed: of folds, shuffles and draws.

    Source: after Alain and Bengio, 1610.01644 (probes by layer); Hewitt and Liang, 1909.03368
    (control by random labels).

    Raises:
        BehaviorError: no classes, or labels that do not fit the probes.
        ConfigError: no reference, or no such folds.
    """
    behaviors = [behavior] if contrast is None else [behavior, contrast]
    classes = class_labels(behavior, labels, contrast)
    if not 2 <= folds <= len(classes):
        raise ConfigError(f"folds={folds}: between 2 and the {len(classes)} rows there are")
    count = int(classes.max()) + 1
    if why := insufficient_rows(classes, count, folds):
        return Decodability(behavior.name, count, status=ReadingStatus.INSUFFICIENT, detail=why)
    noise = np.random.default_rng(seed)
    fold = stratified_group_folds(classes, row_groups(behaviors, groups, len(classes)), folds, noise)
    orders = [torch.arange(len(classes))]
    orders += [torch.from_numpy(noise.permutation(len(classes))) for _ in range(SHUFFLES)]
    names, now, then = _streams(model, behaviors, reference, weights_on_disk, layers)
    told: list[tuple[_ProbeAccuracy, _ProbeAccuracy]] = []
    for index, sides in enumerate(zip(now, then, strict=True)):
        own, other = (_probe_accuracy(rows, classes, fold, orders) for rows in sides)
        told.append((own, other))
        if progress is not None:
            progress(index + 1, len(names))
    return _summarize(behavior.name, names, told, classes, noise)


def _streams(
    model: nn.Module,
    behaviors: list[Behavior],
    reference: Reference,
    home: Weights | None,
    layers: Sequence[str] | None,
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Names of the layers, and the rows of each, now and at the reference."""

    def read(at: nn.Module) -> tuple[list[str], list[Tensor]]:
        names = residual_layers(at, layers)
        found = [behavior_residual_stream(at, behavior, names) for behavior in behaviors]
        return names, [torch.cat([part[name] for part in found]) for name in names]

    with preserve_training_state(model):  # switching adapters changes what their weights require
        names, now = read(model)
        with reference_model(model, reference, home) as there:
            others, then = read(there)
    if len(others) != len(names):
        raise ConfigError(f"the model has {len(names)} layers and the reference {len(others)}")
    return names, now, then


def _probe_accuracy(rows: Tensor, classes: Tensor, fold: Tensor, orders: list[Tensor]) -> _ProbeAccuracy:
    """Told right or not by the labels in each of `orders`, of which the first is the true one."""
    # About one of them, so that rows that are all alike are exactly 0 and no rounding is learned.
    rows = rows.double() - rows[:1].double()
    if rows.shape[1] > len(rows):  # turned into the space they span: products stay what they are
        rows = torch.linalg.qr(rows.T, mode="r").R.T
    found = [_correct_rows(rows, classes[order], fold) for order in orders]
    shares = [_balanced_accuracy(right, classes[order]) for right, order in zip(found, orders, strict=True)]
    return _ProbeAccuracy(found[0].numpy(), shares[0], np.array(shares[1:]))


def _correct_rows(rows: Tensor, classes: Tensor, fold: Tensor) -> Tensor:
    right = torch.zeros(len(rows), dtype=torch.bool)
    for out in (fold == index for index in fold.unique()):
        kinds, own = classes[~out].unique(return_inverse=True)
        normals, middle = balanced_ridge(rows[~out], own, len(kinds))
        guessed = kinds[((rows[out] - middle) @ normals).argmax(-1)]
        right[out] = guessed == classes[out]
    return right


def _balanced_accuracy(right: Tensor, classes: Tensor) -> float:
    sizes = classes.bincount().double()
    return float((classes.bincount(right.double()) / sizes).mean())


def _summarize(
    name: str,
    layers: list[str],
    told: list[tuple[_ProbeAccuracy, _ProbeAccuracy]],
    classes: Tensor,
    noise: np.random.Generator,
) -> Decodability:
    def high(shares: np.ndarray) -> float:
        return float(np.quantile(shares, 0.95))

    probes = tuple(
        LayerProbe(
            layer,
            now.accuracy,
            then.accuracy,
            *(float(now.shuffled.mean()), high(now.shuffled)),
            *(float(then.shuffled.mean()), high(then.shuffled)),
        )
        for layer, (now, then) in zip(layers, told, strict=True)
    )
    best = int(np.argmax([probe.reference for probe in probes]))
    ceiling = high(np.max([then.shuffled for _, then in told], axis=0))
    found: dict[str, Any] = {"layers": probes, "best": layers[best], "ceiling": ceiling}
    count = int(classes.max()) + 1
    if probes[best].reference <= ceiling:
        why = (
            f"even the reference tells the classes apart in {probes[best].reference:.2f} of the "
            f"rows at its best layer only, and shuffled labels reach {ceiling:.2f}"
        )
        return Decodability(name, count, **found, status=ReadingStatus.INSUFFICIENT, detail=why)
    retained = _retained(told[best], classes.numpy(), noise)
    return Decodability(name, count, **found, retained=retained)


def _retained(
    told: tuple[_ProbeAccuracy, _ProbeAccuracy], classes: np.ndarray, noise: np.random.Generator
) -> Estimate:
    """Share of the reference's accuracy above its control, with its interval over probes."""
    draws = np.zeros((2, DRAWS))
    kinds = np.unique(classes)
    for kind in kinds:
        rows = np.flatnonzero(classes == kind)
        drawn = noise.choice(rows, (DRAWS, len(rows)))
        draws += [side.right[drawn].mean(1) / len(kinds) for side in told]
    above = draws - np.array([[side.shuffled.mean()] for side in told])
    ratios = np.full(DRAWS, np.inf)
    np.divide(above[0], above[1], out=ratios, where=above[1] > 0)
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    own, other = (side.accuracy - float(side.shuffled.mean()) for side in told)
    return Estimate(own / other, float(low), float(high), len(classes))
