"""Steep alignment against an SVD of the whole Jacobian in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior, ReadingStatus
from riprap import evaluation as probing
from riprap.errors import BehaviorError
from riprap.signals import SteepAlignment
from riprap.signals.gradients._steep import alignment, steep_directions, steep_stack, steep_weights
from tiny import make_llama
from views import gradient_view, probe_view, trainable, values

IDS = torch.randint(3, 47, (6, 5), generator=torch.Generator().manual_seed(3))
TARGETS = [9, 11, 30, 12, 5, 7]


def words() -> Behavior:
    return Behavior.next_token("words", IDS, TARGETS)


def jacobian(model: nn.Module, behavior: Behavior) -> np.ndarray:
    rows = []
    for index in range(len(TARGETS)):
        model.zero_grad()
        own = behavior.subset([index])
        own.margins(model, own.probes).sum().backward()
        grads = [p.grad if p.grad is not None else 0 * p for p in model.parameters()]
        rows.append(np.concatenate([g.detach().double().numpy().ravel() for g in grads]))
    model.zero_grad()
    return np.stack(rows)


def shaped(flat: Tensor, model: nn.Module) -> list[Tensor]:
    parts = flat.float().split([p.numel() for p in model.parameters()])
    return [part.view_as(p) for part, p in zip(parts, model.parameters(), strict=True)]


def read(model: nn.Module, gradient: list[Tensor], signal: SteepAlignment) -> float:
    view = probe_view(0, [words()], model)
    signal.start(view)
    readings = signal.on_gradient(gradient_view(1, view.protected_gradients, gradient))
    return values(readings, "steep_alignment")["words"]


@pytest.mark.parametrize("k", [1, 3, 6])
def test_it_agrees_with_the_svd(k: int) -> None:
    model = make_llama(scale=5.0).eval()
    rows = jacobian(model, words())
    steep = np.linalg.svd(rows, full_matrices=False)[2][:k]
    task = rows[0] + rows[3] + 0.5 * np.random.default_rng(0).normal(size=rows.shape[1])
    expected = ((steep @ task) ** 2).sum() / (task @ task)
    found = read(model, shaped(torch.from_numpy(task), model), SteepAlignment(k))
    assert found == pytest.approx(expected, rel=2e-3)
    assert 0.01 < found < 0.99


def test_the_directions_are_orthonormal_and_steepest_first() -> None:
    rows = torch.randn(5, 40).double() * torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])[:, None]
    directions = torch.cat(
        [torch.cat(d)[None] for d in steep_directions([[r[:15], r[15:]] for r in rows], 4)]
    )
    torch.testing.assert_close(directions @ directions.T, torch.eye(4).double())
    lengths = (rows @ directions.T).norm(dim=0)
    torch.testing.assert_close(lengths, torch.linalg.svdvals(rows)[:4])


def test_directions_that_are_rounding_error_are_left_out() -> None:
    rows = torch.randn(2, 30)
    repeated = torch.cat([rows, rows, rows.sum(0, keepdim=True)])
    assert steep_weights(repeated @ repeated.T, 5).shape == (2, 5)


def test_random_gradients_align_by_chance() -> None:
    model = make_llama().eval()
    view, signal = probe_view(0, [words()], model), SteepAlignment(4)
    signal.start(view)
    chance = values(signal.on_probe_evaluation(view), "steep_alignment_chance")["words"]
    count = sum(p.numel() for p in model.parameters())
    assert chance == 4 / count
    found = []
    for _ in range(200):
        gradient = [torch.randn_like(p) for p in model.parameters()]
        found += values(
            signal.on_gradient(gradient_view(1, view.protected_gradients, gradient)),
            "steep_alignment",
        ).values()
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - chance) < 4 * error
    assert signal.on_probe_evaluation(probe_view(2, [words()], model)) == []


def test_it_sees_what_the_mean_gradient_does_not() -> None:
    """A task that raises one margin as it lowers another: cosine with the mean is 0."""
    one, two = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0])
    task = [one - two]
    assert float(task[0] @ (one + two)) == 0
    assert alignment(task, 2**0.5, steep_stack([[one], [two]], 2)) == pytest.approx(1)
    assert np.isnan(alignment([torch.zeros(4)], 0.0, steep_stack([[one], [two]], 2)))


def test_only_so_many_probes_are_taken_evenly() -> None:
    model = make_llama(scale=5.0).eval()
    rows = jacobian(model, words())
    found = probing.margin_gradients(words(), model, trainable(model), max_probes=3)
    assert found is not None
    for row, index in zip(found, (0, 2, 5), strict=True):
        flat = np.concatenate([part.double().numpy().ravel() for part in row])
        np.testing.assert_allclose(flat, rows[index], rtol=1e-3, atol=1e-5)


def test_a_detached_margin_is_not_run() -> None:
    model, signal = make_llama().eval(), SteepAlignment()
    cut = Behavior("cut", IDS, lambda m, ids: m(ids).logits[:, -1, 5].detach())
    view = probe_view(0, [cut], model)
    signal.start(view)
    readings = signal.on_probe_evaluation(view)
    assert [(r.state, "detached" in r.detail) for r in readings] == [(ReadingStatus.NOT_RUN, True)]


def test_shards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riprap.evaluation._per_probe.has_sharded_parameters", lambda model: True)
    model = make_llama().eval()
    with pytest.raises(BehaviorError, match="gradients of single probes"):
        SteepAlignment().start(probe_view(0, [words()], model))
