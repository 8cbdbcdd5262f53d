"""Decodability against explicit least squares, and on models with known answers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from moved import WORLD, adapted, start, untouched, weights
from riprap import Behavior
from riprap.diagnosis.evidence._cv_folds import stratified_group_folds
from riprap.diagnosis.evidence._linear_decodability import Decodability, linear_decodability
from riprap.errors import BehaviorError, ConfigError
from riprap.signals.features._linear_probe import RIDGE
from riprap.types import ReadingStatus
from tiny import PlainLM, make_llama

REFUSAL, OVER = WORLD.behaviors()[1:]


def hidden(model: nn.Module, behavior: Behavior) -> list[np.ndarray]:
    """The stream at the last prompt token, one row at a time, as the model itself hands it out."""
    found: list[list[np.ndarray]] = []
    model = model.double().eval()
    for row in behavior.probes.rows():
        with torch.no_grad():
            states = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        found.append([state[0, -1].numpy() for state in states])
    return [np.array(layer) for layer in zip(*found, strict=True)]


def plain_accuracy(rows: np.ndarray, classes: np.ndarray, fold: np.ndarray) -> float:
    """Weighted ridge regression on class indicators in d dimensions, as stacked least squares."""
    kinds = np.unique(classes)
    right = np.zeros(len(rows))
    for out in range(fold.max() + 1):
        kept = fold != out
        x, y = rows[kept], classes[kept]
        middle = np.mean([x[y == kind].mean(0) for kind in kinds], axis=0)
        weight = np.array([1 / np.sum(y == own) for own in y]) ** 0.5
        a = (x - middle) * weight[:, None]
        b = (np.equal.outer(y, kinds) - 1 / len(kinds)) * weight[:, None]
        lifted = np.vstack([a, np.sqrt(RIDGE * np.sum(a**2)) * np.eye(a.shape[1])])
        target = np.vstack([b, np.zeros((a.shape[1], len(kinds)))])
        normals = np.linalg.lstsq(lifted, target, rcond=None)[0]
        guessed = kinds[((rows[~kept] - middle) @ normals).argmax(1)]
        right[~kept] = guessed == classes[~kept]
    return float(np.mean([right[classes == kind].mean() for kind in kinds]))


def thirds(behavior: Behavior) -> list[int]:
    """Classes that hang on a token of the prompt."""
    return [row[1] % 3 for row in behavior.probes.rows()]


def test_equal_to_the_reference() -> None:
    behavior, model = WORLD.behaviors()[0], start()
    labels = thirds(behavior)
    found = linear_decodability(model, behavior, labels=labels, reference=start(), folds=4, seed=5)
    classes = np.unique(labels, return_inverse=True)[1]
    groups = [tuple(row) for row in behavior.probes.rows()]
    fold = stratified_group_folds(
        torch.from_numpy(classes), groups, 4, np.random.default_rng(5)
    ).numpy()
    states = hidden(start(), behavior)
    assert len(found.layers) == 3  # embeddings and two blocks
    bottom, block, _ = found.layers  # the model hands out the last one normed
    assert bottom.now == bottom.reference == pytest.approx(1 / 3)  # all end with one token
    assert bottom.control_high == pytest.approx(1 / 3)
    expected = plain_accuracy(states[1], classes, fold)
    assert block.now == block.reference == pytest.approx(expected, abs=1e-9)
    assert [probe.layer for probe in found.layers][1:] == ["model.layers.0", "model.layers.1"]


def broken() -> nn.Module:
    """A model that no longer distinguishes the objects of requests: equal embeddings."""
    model = start()
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[0]  # type: ignore[union-attr]
    return model


def test_what_is_there_is_found_and_what_is_gone_is_not() -> None:
    whole = linear_decodability(start(), REFUSAL, contrast=OVER, reference=weights(start()))
    assert whole.status is ReadingStatus.MEASURED
    assert whole.classes == 2
    assert whole.retained is not None
    assert (whole.retained.mean, whole.retained.low, whole.retained.high) == (1, 1, 1)
    best = next(probe for probe in whole.layers if probe.layer == whole.best)
    assert best.reference == max(probe.reference for probe in whole.layers) > 0.95
    assert best.reference > (whole.ceiling or 1)
    assert 0.4 < best.reference_control < 0.6 < best.reference_control_high
    gone = linear_decodability(broken(), REFUSAL, contrast=OVER, reference=start())
    assert gone.best == whole.best
    assert gone.retained is not None
    assert gone.retained.low < 0.15
    assert gone.retained.high < 0.5
    assert gone.retained.low <= gone.retained.mean <= gone.retained.high


def test_an_output_that_forgot_is_no_stream_that_forgot() -> None:
    model = start()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # type: ignore[union-attr]
    found = linear_decodability(model, REFUSAL, contrast=OVER, reference=start())
    assert found.retained is not None
    assert found.retained.mean == 1


def test_what_the_reference_never_knew_is_no_evidence() -> None:
    measured = 0
    for seed in range(5):
        labels = np.random.default_rng(seed).integers(0, 2, len(REFUSAL.probes)).tolist()
        found = linear_decodability(start(), REFUSAL, labels=labels, reference=start(), seed=seed)
        measured += found.status is ReadingStatus.MEASURED
        if found.status is ReadingStatus.INSUFFICIENT:
            assert "shuffled labels reach" in found.detail
            assert found.retained is None
            assert found.layers
    assert measured <= 1


@pytest.mark.parametrize(
    ("behavior", "options", "why"),
    [
        (WORLD.behaviors()[0], {}, r"48 rows in 2\d classes"),
        (REFUSAL, {}, "one class"),
    ],
)
def test_too_few_rows_are_no_evidence(
    behavior: Behavior, options: dict[str, object], why: str
) -> None:
    found = linear_decodability(start(), behavior, reference=start(), **options)  # type: ignore[arg-type]
    assert found.status is ReadingStatus.INSUFFICIENT
    assert found.layers == ()
    assert re.search(why, found.detail)


def test_rows_of_a_group_share_a_fold() -> None:
    classes = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    groups = ["a", "b", "a", "c", "b", "d", "d", "a"]
    for seed in range(5):
        fold = stratified_group_folds(classes, groups, 3, np.random.default_rng(seed))
        by_group = {group: set() for group in groups}
        for group, own in zip(groups, fold.tolist(), strict=True):
            by_group[group].add(own)
        assert all(len(folds) == 1 for folds in by_group.values())
        assert len(fold.unique()) == 3
    alone = stratified_group_folds(classes, list(range(8)), 4, np.random.default_rng(0))
    for own in (0, 1):  # each class is spread over all folds
        assert sorted(alone[classes == own].tolist()) == [0, 1, 2, 3]


def test_a_prompt_that_is_there_twice_does_not_judge_itself() -> None:
    """Random labels, each prompt six times: by rows, the probes would know them by heart."""
    made = np.random.default_rng(0)
    rows = made.integers(3, 30, (16, 5)).tolist() * 6
    labels = made.integers(0, 2, 16).tolist() * 6
    behavior = Behavior.next_token("b", rows, [0] * len(rows))
    model = make_llama()
    by_prompt = linear_decodability(model, behavior, labels=labels, reference=model)
    by_row = linear_decodability(model, behavior, labels=labels, reference=model, groups=range(96))
    assert max(probe.now for probe in by_row.layers) > 0.85
    assert max(probe.now for probe in by_prompt.layers) < 0.7


def test_the_model_is_restored() -> None:
    model, behavior = adapted(), Behavior.next_token("b", [[3, 8], [3, 9]] * 8, [4, 5] * 8)
    seen: list[tuple[int, int]] = []
    with untouched(model):
        found = linear_decodability(
            model, behavior, progress=lambda done, total: seen.append((done, total))
        )
    assert seen == [(at + 1, 4) for at in range(4)]
    assert isinstance(found, Decodability)
    toy = start()
    for there in (start(), weights(start())):
        with untouched(toy):
            linear_decodability(toy, REFUSAL, contrast=OVER, reference=there, layers=["layers.1"])


def test_the_adapter_switched_off_is_the_reference() -> None:
    behavior = Behavior.next_token("b", [[3, at, 4] for at in range(5, 29)], [0] * 24)
    labels = [at % 2 for at in range(24)]
    model = adapted()
    own = linear_decodability(model, behavior, labels=labels)
    base = linear_decodability(make_llama(), behavior, labels=labels, reference=make_llama())
    assert [p.reference for p in own.layers] == [p.now for p in base.layers]
    assert [p.now for p in own.layers] != [p.reference for p in own.layers]


def test_a_plain_model() -> None:
    rows = [[at, 3, 7] for at in range(24)]
    behavior = Behavior.next_token("b", rows, [0] * 24)
    model = PlainLM()
    found = linear_decodability(
        model, behavior, labels=[at % 2 for at in range(24)], reference=model
    )
    assert [probe.layer for probe in found.layers] == ["embed", "blocks.0", "blocks.1", "blocks.2"]
    assert found.layers[0].now == 0.5  # the same last token everywhere: nothing to tell


def test_what_does_not_fit_is_refused() -> None:
    model = start()
    with pytest.raises(BehaviorError, match="labels of shape"):
        linear_decodability(model, REFUSAL, labels=[0, 1], reference=model)
    with pytest.raises(BehaviorError, match="not both"):
        linear_decodability(model, REFUSAL, labels=[0, 1], contrast=OVER, reference=model)
    with pytest.raises(BehaviorError, match="groups"):
        linear_decodability(model, REFUSAL, contrast=OVER, reference=model, groups=[1])
    with pytest.raises(ConfigError, match="folds"):
        linear_decodability(model, REFUSAL, contrast=OVER, reference=model, folds=1)
    with pytest.raises(ConfigError, match="no reference"):
        linear_decodability(model, REFUSAL, contrast=OVER)
    custom = Behavior("custom", [1, 2], lambda _model, _probes: torch.ones(2))
    with pytest.raises(BehaviorError, match="no classes"):
        linear_decodability(model, custom, reference=model)
