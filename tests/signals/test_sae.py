"""SAE features: the dictionary against known truth and written steps, the signal against numpy."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from journeys import Journey
from riprap import Behavior, ReadingStatus
from riprap.errors import ConfigError
from riprap.signals import SAEFeatures
from riprap.signals.features._dictionary import TopKSAE, jaccard, unexplained_variance
from tiny import PlainLM
from views import probe_view, values


def sparse_rows(n: int = 600, d: int = 16, true: int = 20) -> tuple[Tensor, Tensor]:
    """Rows made of two of `true` directions each, and the directions."""
    directions = torch.nn.functional.normalize(torch.randn(true, d), dim=1)
    codes = torch.zeros(n, true)
    for row in codes:
        row[torch.randperm(true)[:2]] = 1 + torch.rand(2)
    return codes @ directions, directions


def test_it_finds_the_directions_that_rows_are_made_of() -> None:
    rows, directions = sparse_rows()
    sae = TopKSAE.initialize(rows, latents=64, k=4)
    before = unexplained_variance(rows, sae.decode(sae.encode(rows)), rows.mean(0))
    sae.train(rows, 400, 1e-2)
    after = unexplained_variance(rows, sae.decode(sae.encode(rows)), rows.mean(0))
    assert after < 0.1
    assert after < before / 3
    best = (directions @ sae.W_dec.T).max(1).values
    assert (best > 0.9).float().mean() > 0.7


def test_rows_use_k_latents_at_most_and_directions_keep_unit_norm() -> None:
    rows = torch.randn(30, 12) * 50 + 7
    sae = TopKSAE.initialize(rows, latents=40, k=3)
    sae.train(rows, 20, 1e-2)
    latents = sae.encode(rows)
    assert latents.min() >= 0
    assert (latents > 0).sum(1).max() == 3
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))


def test_training_agrees_with_torchs_adam() -> None:
    rows = torch.randn(20, 6)
    sae = TopKSAE.initialize(rows, latents=9, k=2)
    parts = [part.clone().requires_grad_() for part in sae.trained_tensors]
    optimizer = torch.optim.Adam(parts, lr=1e-2)
    for _ in range(5):
        w_enc, b_enc, w_dec, b_dec = parts
        pre = torch.relu((rows * sae.scale - b_dec) @ w_enc + b_enc)
        kept = torch.zeros_like(pre).scatter(1, pre.topk(2, dim=1).indices, 1.0)
        error = (pre * kept) @ w_dec + b_dec - rows * sae.scale
        optimizer.zero_grad()
        error.square().sum(1).mean().backward()
        optimizer.step()
        with torch.no_grad():
            w_dec /= w_dec.norm(dim=1, keepdim=True)
    sae.train(rows, 5, 1e-2)
    for found, expected in zip(sae.trained_tensors, parts, strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_leaves_generators_alone_in_any_mode(mode: Any) -> None:
    rows = torch.randn(20, 6)
    expected = TopKSAE.initialize(rows, 12, 2)
    expected.train(rows, 3, 1e-2)
    kept = torch.get_rng_state()
    with mode(), torch.autocast("cpu", torch.bfloat16):
        sae = TopKSAE.initialize(rows, 12, 2)
        sae.train(rows, 3, 1e-2)
        assert torch.is_grad_enabled() is False
    assert torch.equal(kept, torch.get_rng_state())
    torch.testing.assert_close(sae.W_dec, expected.W_dec)
    assert not sae.W_dec.requires_grad


def test_a_copy_is_trained_on_its_own() -> None:
    rows = torch.randn(20, 6)
    sae = TopKSAE.initialize(rows, 12, 2)
    kept = [part.clone() for part in sae.trained_tensors]
    sae.copy().train(rows, 3, 1e-1)
    assert all(torch.equal(a, b) for a, b in zip(kept, sae.trained_tensors, strict=True))


def test_jaccard_and_unexplained() -> None:
    one = torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    two = torch.tensor([[0.0, 2, 3, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert jaccard(one, two) == pytest.approx((1 / 3 + 1) / 2)
    assert np.isnan(jaccard(one[1:2], two[1:2]))
    rows = torch.randn(5, 3)
    assert unexplained_variance(rows, rows, rows.mean(0)) == 0
    assert unexplained_variance(rows, rows.mean(0).expand(5, 3), rows.mean(0)) == pytest.approx(1)
    assert np.isnan(unexplained_variance(torch.ones(5, 3), torch.ones(5, 3), torch.ones(3)))


class Ready:
    """A dictionary of plain directions: what sae-lens gives, as far as it is used."""

    def __init__(self, width: int = 16, latents: int = 24, bias: float = -0.5) -> None:
        made = torch.Generator().manual_seed(4)
        self.W_dec = torch.nn.functional.normalize(
            torch.randn(latents, width, generator=made), dim=1
        )
        self.bias = bias

    def encode(self, rows: Tensor) -> Tensor:
        return torch.relu(rows @ self.W_dec.T + self.bias)

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.W_dec


def by_hand(sae: Ready, rows: np.ndarray) -> np.ndarray:
    return np.maximum(rows @ sae.W_dec.double().numpy().T + sae.bias, 0)


def test_readings_of_a_ready_dictionary() -> None:
    sae = Ready(bias=-0.01)
    journey = Journey(SAEFeatures(sae=sae))
    for readings, sets in ((journey.first, journey.then), (journey.later, journey.now)):
        center = np.concatenate(list(sets.values())).mean(0)
        codes = {name: by_hand(sae, rows) for name, rows in sets.items()}
        for name, rows in sets.items():
            active, then = codes[name] > 0, by_hand(sae, journey.then[name]) > 0
            assert values(readings, "sae_l0")[name] == pytest.approx(active.sum(1).mean())
            lost = ((rows - codes[name] @ sae.W_dec.double().numpy()) ** 2).sum()
            expected = lost / ((rows - center) ** 2).sum()
            assert values(readings, "sae_loss")[name] == pytest.approx(expected, rel=1e-4)
            both, either = (active & then).sum(1), (active | then).sum(1)
            overlap = (both[either > 0] / either[either > 0]).mean()
            assert values(readings, "sae_jaccard")[name] == pytest.approx(overlap)
        dead = 1 - (np.concatenate(list(codes.values())) > 0).any(0).mean()
        assert values(readings, "sae_dead")[""] == pytest.approx(dead)
    assert 0 < dead < 1
    assert values(journey.later, "sae_jaccard")["lone"] < 0.99
    assert values(journey.later, "sae_decoder_cosine") == {}


def test_the_dictionary_is_carried_along() -> None:
    signal = SAEFeatures(latents=32, k=3)
    journey = Journey(signal)
    assert values(journey.first, "sae_jaccard") == dict.fromkeys(("refusal", "over", "lone"), 1.0)
    assert values(journey.first, "sae_decoder_cosine")[""] == pytest.approx(1)
    now = torch.from_numpy(np.concatenate(list(journey.now.values()))).float()
    left = unexplained_variance(
        now, signal.start_sae.decode(signal.start_sae.encode(now)), now.mean(0)
    )
    carried = unexplained_variance(
        now, signal.current_sae.decode(signal.current_sae.encode(now)), now.mean(0)
    )
    assert carried < left
    turned = values(journey.later, "sae_decoder_cosine")[""]
    alive = signal.start_alive
    assert alive is not None
    cosines = (signal.start_sae.W_dec * signal.current_sae.W_dec).sum(1)[alive]
    assert turned == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert 0.5 < turned < 0.99999
    assert all(0 < value < 1 for value in values(journey.first, "sae_loss").values())


def test_more_rows_make_another_dictionary() -> None:
    alone, helped = SAEFeatures(), SAEFeatures(activations=torch.randn(200, 16))
    Journey(alone)
    Journey(helped)
    assert not torch.equal(alone.start_sae.W_dec, helped.start_sae.W_dec)
    with pytest.raises(ConfigError, match=r"activations=\.\.\.\) of shape \(5, 7\)"):
        Journey(SAEFeatures(activations=torch.randn(5, 7)))


def test_a_dense_dictionary_is_said_to_be_so() -> None:
    with pytest.warns(UserWarning, match="the SAE is dense: a row uses"):
        journey = Journey(SAEFeatures(sae=Ready(bias=10.0)))
    for readings in (journey.first, journey.later):
        found = [r for r in readings if r.signal == "sae_l0"]
        assert len(found) == 3
        assert all("dense" in r.detail and r.state == ReadingStatus.MEASURED for r in found)
    sparse = Journey(SAEFeatures(latents=32, k=3))
    assert not [r for r in sparse.first if "dense" in r.detail]


def test_a_dictionary_of_another_width_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"rows of width 9, but layer model\.layers\.1 returns 16"
    ):
        Journey(SAEFeatures(sae=Ready(width=9)))


@pytest.mark.parametrize("old", [False, True])
def test_pretrained_ones_come_through_sae_lens(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    asked: list[Any] = []

    class SAE:
        @staticmethod
        def from_pretrained(release: str, sae_id: str, **options: Any) -> Any:
            asked.append((release, sae_id, options))
            return (Ready(), {}, None) if old else Ready()

    monkeypatch.setitem(sys.modules, "sae_lens", types.SimpleNamespace(SAE=SAE))
    journey = Journey(SAEFeatures.from_sae_lens("release", "blocks.1", device="cpu"))
    assert asked == [("release", "blocks.1", {"device": "cpu"})]
    assert values(journey.later, "sae_l0").keys() == {"refusal", "over", "lone"}


def test_without_sae_lens_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ConfigError, match=r"pip install 'riprap\[sae\]'"):
        SAEFeatures.from_sae_lens("release", "blocks.1")


def test_a_margin_that_passes_the_layer_by_is_not_run() -> None:
    ids = torch.randint(3, 40, (3, 5))
    aside = Behavior("aside", ids, lambda m, x: m.head(m.embed(x))[:, -1, 4])
    signal, view = SAEFeatures(), probe_view(0, [aside], PlainLM())
    signal.start(view)
    assert [(r.state, "was not run" in r.detail) for r in signal.on_probe_evaluation(view)] == [
        (ReadingStatus.NOT_RUN, True)
    ]
    assert signal.on_probe_evaluation(probe_view(1, [aside], PlainLM())) == []
