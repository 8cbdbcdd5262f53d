"""The Jacobian of the margins against a dense float64 one, and against known ranks."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from riprap import Behavior
from riprap.behaviors import _prefix_cache as prefixes
from riprap.diagnosis._base import estimate
from riprap.diagnosis.geometry._concentration import (
    Concentration,
    concentration,
    effective_rank,
    jackknife_estimate,
    participation_ratio,
)
from riprap.errors import BehaviorError
from tiny import PlainLM, make_llama

IDS = torch.randint(3, 47, (6, 5), generator=torch.Generator().manual_seed(3))
TARGETS = [9, 11, 30, 12, 5, 7]


def words() -> Behavior:
    return Behavior.next_token("words", IDS, TARGETS)


def rows_of(model: nn.Module, behavior: Behavior) -> dict[str, np.ndarray]:
    """The Jacobian by parameter, a backward pass a probe."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name, _ in model.named_parameters()}
    for index in range(len(TARGETS)):
        model.zero_grad()
        own = behavior.subset([index])
        own.margins(model, own.probes).sum().backward()
        for name, p in model.named_parameters():
            rows[name].append(p.grad.double().numpy().ravel())
    model.zero_grad()
    return {name: np.stack(own) for name, own in rows.items()}


def test_ranks_that_are_known() -> None:
    even = np.eye(5) * 3.0
    assert participation_ratio(even) == pytest.approx(5)
    assert effective_rank(even) == pytest.approx(5)
    one = np.ones((5, 5))
    assert participation_ratio(one) == pytest.approx(1)
    assert effective_rank(one) == pytest.approx(1, abs=1e-5)
    two = np.diag([9.0, 1.0, 0.0])
    assert participation_ratio(two) == pytest.approx(100 / 82)
    shares = np.array([0.75, 0.25])  # of σ, not of σ²
    assert effective_rank(two) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("at_once", [2**29, 1])
def test_gramians_are_those_of_the_whole_jacobian(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        import_module("riprap.diagnosis.geometry._concentration"), "MAX_GRADIENT_ELEMENTS", at_once
    )
    model = make_llama(scale=5.0).eval()
    found = concentration(model, words())
    rows = rows_of(model, words())
    whole = np.concatenate(list(rows.values()), 1)
    np.testing.assert_allclose(found.gramians.sum(0), whole @ whole.T, rtol=1e-4, atol=1e-4)
    assert len(found.layers) == len(found.gramians) == 6
    for layer, gramian in zip(found.layers, found.gramians, strict=True):
        own = np.concatenate([r for name, r in rows.items() if name.startswith(layer + ".")], 1)
        np.testing.assert_allclose(gramian, own @ own.T, rtol=1e-4, atol=1e-4)
        share = (own**2).sum() / (whole**2).sum()
        assert found.by_layer[layer] == pytest.approx(share, rel=1e-4)
    sigma = np.linalg.svd(whole, compute_uv=False)
    ratio = (sigma**2).sum() ** 2 / (sigma**4).sum()
    assert found.rank_share.mean == pytest.approx(ratio / 6, rel=1e-4)


class Weighted(nn.Module):
    """Token t counts (t + 1) times, so that the energy by position can be written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(47, 4)
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(2))
        self.head = nn.Linear(4, 47, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for block in self.blocks:
            hidden = block(hidden)
        weights = torch.arange(1.0, ids.shape[1] + 1)
        return self.head((hidden * weights[:, None]).sum(1))


@pytest.mark.parametrize("frozen", [False, True])
def test_energy_by_token_is_counted_from_the_last_one(frozen: bool) -> None:
    model = Weighted()
    model.embed.weight.requires_grad_(not frozen)
    found = concentration(model, words())
    squares = np.arange(5, 0, -1.0) ** 2
    np.testing.assert_allclose(found.by_position, squares / squares.sum(), rtol=1e-5)
    assert found.positions.shape == (6, 5)


def test_padding_is_no_token() -> None:
    model = make_llama(scale=5.0).eval()
    ragged = Behavior.next_token("ragged", [[3, 4, 5, 6, 7], [8, 9]], [9, 11])
    positions = concentration(model, ragged).positions
    assert positions.shape == (2, 5)
    assert (positions[0] > 0).all()
    assert (positions[1, :2] > 0).all()
    assert (positions[1, 2:] == 0).all()


def test_a_prompt_that_is_read_once_for_its_options_has_its_place(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_llama(scale=5.0).eval()
    prompts = ["how to make a red cake with the help of you", "what is the car of you"]
    options = [["yes sure", "no red"], ["red cake", "two plus"]]
    choice = Behavior.multiple_choice("choice", tokenizer, prompts, options, [0, 1])
    shared = concentration(model, choice)
    monkeypatch.setattr(prefixes, "saves_compute", lambda cut, rows: False)
    whole = concentration(model, choice)
    np.testing.assert_allclose(shared.gramians, whole.gramians, rtol=1e-3, atol=1e-4)
    assert shared.positions.shape == whole.positions.shape
    # Squares of sums where the prompt is read once, and sums of squares where it is not.
    np.testing.assert_allclose(shared.by_position, whole.by_position, atol=0.02)
    assert whole.by_position[:3].sum() > 0.2


def test_a_rank_that_probes_share_is_concentrated() -> None:
    """One probe five times is one direction; an interval over probes knows how sure that is."""
    model = make_llama(scale=5.0).eval()
    same = Behavior.next_token("same", IDS[:1].repeat(5, 1), TARGETS[:1] * 5)
    found = concentration(model, same)
    assert found.rank_share.mean == pytest.approx(1 / 5, rel=1e-3)
    assert found.entropy_share.mean == pytest.approx(1 / 5, rel=2e-2)
    assert concentration(model, words()).rank_share.mean > 2 * found.rank_share.mean


def test_the_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=20)
    expected = estimate(values)
    found = jackknife_estimate(values.mean(), [np.delete(values, i).mean() for i in range(20)])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    few = Concentration(("a",), np.eye(2)[None], np.ones((2, 1)))
    assert np.isnan(few.rank_share.low)


def test_it_leaves_no_trace_and_says_how_far_it_is() -> None:
    model, calls = PlainLM().train(), []
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    concentration(model, words(), progress=lambda done, n: calls.append((done, n)))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not any(len(m._forward_pre_hooks) for m in model.modules())
    assert calls == [(done, 6) for done in range(1, 7)]


def test_margins_that_cannot_be_taken() -> None:
    model = make_llama().eval()
    with pytest.raises(BehaviorError, match="at least one index"):
        concentration(model, Behavior("own", IDS.tolist(), words().margins))
    kind = words().margins
    cut = Behavior("cut", words().probes, lambda m, ids: kind(m, ids).detach())
    cut.subset = lambda chosen: Behavior("cut", words().probes.select(chosen), _detached)  # type: ignore[method-assign]
    with pytest.raises(BehaviorError, match="do not depend on the parameters"):
        concentration(model, cut)


def _detached(model: nn.Module, probes: object) -> Tensor:
    return torch.ones(len(probes))  # type: ignore[arg-type]
