"""Redundancy on models whose number of copies is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import Behavior
from riprap.diagnosis.geometry._redundancy import (
    RANDOM,
    STEEP,
    UNRELATED,
    Redundancy,
    directions_removed,
    redundancy,
)
from riprap.errors import BehaviorError, ConfigError
from tiny import make_llama

IDS = torch.arange(12)[:, None]


class Copies(nn.Module):
    """Says whether a token is even; which of `copies` directions says so depends on the token.

    Where no direction says anything, a third answer wins.
    """

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.embed = nn.Embedding(2, 24)
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
        with torch.no_grad():
            self.embed.weight.zero_()
            strengths = torch.linspace(2.0, 1.0, copies)
            self.embed.weight[:, :copies] = torch.tensor([[1.0], [-1.0]]) * strengths

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids % 2)
        for block in self.blocks:
            hidden = block(hidden)
        own = functional.one_hot(ids // 2 % self.copies, self.copies)
        votes = (hidden[..., : self.copies] * own).sum(-1)
        return torch.stack([votes, -votes, votes * 0 + 0.5], -1)


@pytest.mark.parametrize("copies", [1, 2])
def test_as_many_directions_are_needed_as_carry_it(copies: int) -> None:
    parity = Behavior.next_token("parity", IDS, IDS[:, 0] % 2, floor=0.3)
    found = redundancy(Copies(copies), parity, counts=(1, 2, 4), draws=2)
    assert (found.intact > 0).all()
    assert found.directions_needed == copies
    assert found.scores(STEEP)[0, 0] == pytest.approx(1 - 1 / copies)
    assert (found.scores(RANDOM) == 1).all()


def test_it_is_ablated_along_the_directions_and_nowhere_else() -> None:
    model = make_llama().eval()
    basis = torch.linalg.qr(torch.randn(16, 3))[0]
    seen: list[Tensor] = []
    with directions_removed(model, {"model.layers.1": basis}):
        handle = model.model.layers[2].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        changed = model(IDS[:5].T % 40).logits
        handle.remove()
    assert float((seen[0] @ basis).detach().abs().max()) < 1e-5
    plain = model(IDS[:5].T % 40, output_hidden_states=True)
    rest = torch.eye(16) - basis @ basis.T
    torch.testing.assert_close(seen[0], plain.hidden_states[2] @ rest)
    assert not torch.allclose(changed, plain.logits)
    torch.testing.assert_close(model(IDS[:5].T % 40).logits, plain.logits, rtol=0, atol=0)


def test_all_layers_lose_more_than_one_and_all_kinds_are_drawn() -> None:
    model = make_llama(scale=5.0).eval()
    ids = torch.randint(3, 47, (24, 5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        targets = model(ids).logits[:, -1].argmax(-1)
    words = Behavior.next_token("words", ids, targets)
    calls: list[tuple[int, int]] = []
    found = redundancy(
        model, words, counts=(1, 4), draws=2, progress=lambda d, n: calls.append((d, n))
    )
    one = redundancy(model, words, counts=(1, 4), draws=2, layer="layers.1")
    assert found.ablated_margins[STEEP].shape == (1, 2, 24)
    assert (
        found.ablated_margins[RANDOM].shape == found.ablated_margins[UNRELATED].shape == (2, 2, 24)
    )
    assert found.mean_margins(STEEP)[0, 1] < one.mean_margins(STEEP)[0, 1] < one.intact.mean()
    assert (one.mean_margins(STEEP)[0] < one.mean_margins(RANDOM).mean(0)).all()
    assert calls[-1] == (20, 20)
    again = redundancy(model, words, counts=(1, 4), draws=2, layer="layers.1")
    np.testing.assert_array_equal(one.ablated_margins[UNRELATED], again.ablated_margins[UNRELATED])
    assert (one.ablated_margins[UNRELATED][0] != one.ablated_margins[UNRELATED][1]).any()


def test_a_frozen_model_has_directions_too_and_is_restored() -> None:
    model = make_llama(scale=5.0).train().requires_grad_(False)
    ids = torch.randint(3, 47, (6, 5), generator=torch.Generator().manual_seed(3))
    words = Behavior.next_token("words", ids, [9, 11, 30, 12, 5, 7])
    free = redundancy(make_llama(scale=5.0).eval(), words, counts=(2,), layer="layers.1")
    found = redundancy(model, words, counts=(2,), layer="layers.1")
    np.testing.assert_allclose(found.ablated_margins[STEEP], free.ablated_margins[STEEP], atol=1e-3)
    assert model.training
    assert not any(len(m._forward_hooks) for m in model.modules())


class OneWay(nn.Module):
    """Says 0 by itself, and 1 where one direction asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 6)
        self.blocks = nn.ModuleList([nn.Identity()])
        with torch.no_grad():
            self.embed.weight.zero_()
            self.embed.weight[:, 2] = torch.tensor([-1.0, 3.0, -1.0, 3.0])

    def forward(self, ids: Tensor) -> Tensor:
        asked = self.blocks[0](self.embed(ids))[..., 2]
        return torch.stack([1 - 0 * asked, asked], -1)


def test_a_model_that_gives_one_answer_to_all_has_lost_both_behaviors() -> None:
    even = Behavior.next_token("even", [[0], [2], [0], [2]], [0] * 4)
    odd = Behavior.next_token("odd", [[1], [3], [1], [3], [1]], [1] * 5)
    alone = redundancy(OneWay(), even, counts=(1, 2), draws=1)
    assert alone.directions_needed == float("inf")
    assert np.isnan(alone.contrast_scores(STEEP)).all()
    np.testing.assert_array_equal(alone.worst_scores(STEEP), alone.scores(STEEP))
    both = redundancy(OneWay(), even, contrast=odd, counts=(1, 2), draws=1)
    assert (both.directions_needed, both.directions_needed_alone) == (1, float("inf"))
    assert both.directions_needed_estimate().high == 1
    assert both.contrast_margins[STEEP].shape == (1, 2, 5)
    assert (both.worst_scores(STEEP) == 0).all()


def known(passed: list[list[bool]]) -> Redundancy:
    left = np.where(np.array(passed), 1.0, -1.0)[None]
    beside = {STEEP: np.zeros((1, 3, 0))}
    return Redundancy((1, 2, 4), np.ones(left.shape[-1]), {STEEP: left}, beside, 0.9)


def test_impossible_measurements_raise() -> None:
    model = make_llama().eval()
    ids = torch.randint(3, 47, (4, 5))
    words = Behavior.next_token("words", ids, [9, 11, 30, 12])
    with pytest.raises(ConfigError, match="rising counts"):
        redundancy(model, words, counts=(2, 1))
    with pytest.raises(ConfigError, match="counts has 17"):
        redundancy(model, words, counts=(17,))
    with pytest.raises(BehaviorError, match="two probes or more"):
        redundancy(model, words.subset([0]))
    with pytest.raises(BehaviorError, match="name of a layer"):
        redundancy(nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 50)), words)
    model.unused = nn.Linear(2, 2)
    with pytest.raises(BehaviorError, match="do not depend"):
        redundancy(model, words, layer="unused")
