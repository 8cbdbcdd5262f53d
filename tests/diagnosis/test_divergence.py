"""Divergence against explicit float64 sums, and on changes made by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moved import WORLD, adapted, eroded, start, untouched, weights
from riprap.diagnosis.evidence import _responses as responses
from riprap.diagnosis.evidence import _weight_change as spectra
from riprap.diagnosis.evidence._divergence import divergence
from riprap.diagnosis.evidence._responses import greedy_responses
from riprap.errors import BehaviorError, ConfigError
from tiny import PlainLM, make_llama

PROMPTS = [[3, 8, 11, 4], [3, 19, 4], [3, 9, 9, 30, 12, 4]]
RESPONSES = [[9, 12, 14, 20], [18], [19, 20]]


def nudged(seed: int = 1, size: float = 0.05) -> nn.Module:
    model = make_llama()
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn(part.shape, generator=made) * size)
    return model


def distributions(model: nn.Module) -> list[list[np.ndarray]]:
    """Of each token of each response, one row at a time, without padding, in float64."""
    model = model.double().eval()
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0].numpy()
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        chances = raised / raised.sum(-1, keepdims=True)
        found.append([chances[len(prompt) - 1 + at] for at in range(len(response))])
    return found


def by_hand(first: nn.Module, second: nn.Module) -> list[list[float]]:
    return [
        [float(np.sum(p * np.log(p / q))) for p, q in zip(own, other, strict=True)]
        for own, other in zip(distributions(first), distributions(second), strict=True)
    ]


@pytest.mark.parametrize("logits", [2**24, 50])
def test_kl_is_that_of_the_reference(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "MAX_LOGITS", logits)  # small: a batch for each prompt
    model, reference = nudged(), make_llama()
    found = divergence(model, reference, PROMPTS, responses=RESPONSES, layers=["layers.1"])
    ways = (
        (found.forward, found.forward_at, by_hand(make_llama(), nudged())),
        (found.backward, found.backward_at, by_hand(nudged(), make_llama())),
    )
    for whole, at, expected in ways:
        means = [np.mean(row) for row in expected]
        assert whole.mean == pytest.approx(np.mean(means), rel=1e-4)
        assert [one.n for one in at] == [3, 2, 1, 1]
        for token, one in enumerate(at):
            there = [row[token] for row in expected if len(row) > token]
            assert one.mean == pytest.approx(np.mean(there), rel=1e-4, abs=1e-6)
    assert found.forward.mean != pytest.approx(found.backward.mean, rel=1e-3)
    back = mended(nudged(), make_llama(), "layers.1.")
    left = np.mean([np.mean(row) for row in by_hand(make_llama(), back)])
    tried = [layer for layer in found.layers if layer.kl_after_restore is not None]
    assert [layer.layer for layer in tried] == ["model.layers.1"]
    assert tried[0].kl_after_restore is not None
    assert tried[0].kl_after_restore.mean == pytest.approx(left, rel=1e-4)
    assert tried[0].restored_share == pytest.approx(
        1 - left / found.forward.mean, rel=1e-3, abs=1e-4
    )
    assert found.origin == "given"
    assert found.responses == RESPONSES


def mended(model: nn.Module, reference: nn.Module, where: str) -> nn.Module:
    """The model with one layer's weights of the reference."""
    there = weights(reference)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if where in name:
                part.copy_(there[name])
    return model


def test_where_it_moved_is_where_it_was_moved() -> None:
    reference, model = start(), start()
    made = torch.Generator().manual_seed(0)
    weight = model.model.layers[1].mlp.down_proj.weight  # type: ignore[union-attr]
    change = torch.outer(torch.randn(64, generator=made), torch.randn(128, generator=made)) / 4
    with torch.no_grad():
        weight.add_(change)
    found = divergence(model, reference, WORLD.behaviors()[0], max_new_tokens=1)
    layers = {layer.layer: layer for layer in found.layers}
    assert list(layers) == [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
        "lm_head",
    ]
    moved = layers.pop("model.layers.1")
    assert moved.share_of_change == 1
    assert moved.low_rank[1] == pytest.approx(1, abs=1e-4)
    parts = [
        part.double().numpy().ravel()
        for name, part in weights(reference).items()
        if "layers.1." in name
    ]
    size = np.linalg.norm(np.concatenate(parts))
    # The sum in the model is rounded, so the change that is there is not quite the one made.
    expected = np.linalg.norm(change.double().numpy()) / size
    assert moved.relative_change == pytest.approx(expected, rel=1e-5)
    assert moved.parameters == sum(map(len, parts))
    assert moved.restored_share == 1
    assert moved.activation_change is not None
    assert moved.activation_change.mean > 0
    assert found.most_causal_layer == moved
    assert found.forward.mean > 0.01
    for other in layers.values():
        assert (
            other.relative_change,
            other.share_of_change,
            other.low_rank,
            other.restored_share,
        ) == (0, 0, {}, 0)
        assert other.activation_change is None or other.activation_change.mean == 0


def test_activations_are_those_that_the_model_hands_out() -> None:
    model, reference = nudged(), make_llama()
    found = divergence(model, reference, PROMPTS, responses=RESPONSES, layers=())
    ratios: list[list[float]] = []
    for prompt in PROMPTS:
        states = [
            one.double().eval()(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            for one in (nudged().requires_grad_(False), make_llama().requires_grad_(False))
        ]
        ratios.append(
            [float((a - b)[0, -1].norm() / b[0, -1].norm()) for a, b in zip(*states, strict=True)]
        )
    for layer, expected in zip(found.layers[:3], np.mean(ratios, axis=0)[:3], strict=True):
        assert layer.activation_change is not None
        assert layer.activation_change.mean == pytest.approx(expected, rel=1e-5)
    assert found.most_causal_layer is None
    assert all(layer.restored_share is None for layer in found.layers)


@pytest.mark.parametrize("exact", [2048, 20])
@pytest.mark.parametrize("shape", [(60, 30), (30, 60), (40, 40)])
def test_spectra_are_those_of_numpy(
    shape: tuple[int, int], exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "MAX_EXACT_SIDE", exact)
    made = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=made) @ torch.diag(0.7 ** torch.arange(shape[1]))
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    for size in (1.0, 1e-25):  # squares of the small one are 0 in float32
        found = spectra.squared_singular_values(matrix * size)[:16].numpy() / size**2
        np.testing.assert_allclose(found, expected[:16], rtol=1e-3, atol=1e-6 * expected[0])


def test_low_rank_shares_by_hand() -> None:
    model, reference = nudged(), make_llama()
    found = divergence(model, reference, PROMPTS, responses=RESPONSES, layers=())
    there, here = weights(reference), weights(model)
    tops, total = dict.fromkeys((1, 4, 16), 0.0), 0.0
    for name, part in here.items():
        if "layers.2." in name and part.dim() == 2:
            change = part.double().numpy() - there[name].double().numpy()
            values = np.linalg.svd(change, compute_uv=False) ** 2
            total += values.sum()
            for rank in tops:
                tops[rank] += values[:rank].sum()
    layer = next(one for one in found.layers if one.layer == "model.layers.2")
    for rank, top in tops.items():
        assert layer.low_rank[rank] == pytest.approx(top / total, rel=1e-4)
    assert 0 < layer.low_rank[1] < layer.low_rank[4] < 1


def test_a_model_that_has_not_moved() -> None:
    found = divergence(start(), start(), WORLD.behaviors()[1], max_new_tokens=1)
    assert found.forward.mean == found.backward.mean == 0
    assert all((layer.share_of_change, layer.restored_share) == (0, None) for layer in found.layers)
    assert found.most_causal_layer is None


def test_responses_are_the_references_own() -> None:
    found = divergence(nudged(), make_llama(), PROMPTS, max_new_tokens=3, layers=())
    assert found.responses == greedy_responses(make_llama(), PROMPTS, 3)
    assert found.responses != greedy_responses(nudged(), PROMPTS, 3)
    assert found.origin == "the reference's greedy answers"


def test_two_references_read_the_same_responses() -> None:
    references = {"pretrained": weights(nudged(2)), "aligned": make_llama()}
    both = divergence(nudged(), references, PROMPTS, max_new_tokens=3, layers=())
    assert list(both) == ["pretrained", "aligned"]
    answers = greedy_responses(nudged(2), PROMPTS, 3)
    for name, one in both.items():
        assert one.responses == answers
        assert one.origin == "pretrained's greedy answers"
        alone = divergence(nudged(), references[name], PROMPTS, responses=answers, layers=())
        assert alone.forward == one.forward


def test_an_adapter_and_its_base() -> None:
    model = adapted()
    with untouched(model):
        found = divergence(model, None, PROMPTS, responses=RESPONSES)
    # Merged, the adapter is a change of weights like any other.
    merged = adapted().merge_and_unload()
    plain = divergence(merged, make_llama(), PROMPTS, responses=RESPONSES)
    assert found.forward.mean == pytest.approx(plain.forward.mean, rel=1e-4)
    prefix = "base_model.model."
    others = {layer.layer: layer for layer in plain.layers}
    blocks = [layer for layer in found.layers if "layers" in layer.layer]
    assert len(blocks) == 3
    for layer in blocks:
        other = others[layer.layer.removeprefix(prefix)]
        assert layer.share_of_change == pytest.approx(other.share_of_change, rel=1e-4)
        assert layer.restored_share == pytest.approx(other.restored_share, rel=1e-3)
        assert layer.activation_change is not None
        assert other.activation_change is not None
        assert layer.activation_change.mean == pytest.approx(other.activation_change.mean, rel=1e-4)
        assert layer.low_rank[4] == pytest.approx(1)  # its rank is 3
        assert layer.relative_change == pytest.approx(
            of_matrices(merged, layer.layer[len(prefix) :])
        )


def of_matrices(model: nn.Module, layer: str) -> float:
    """How far a layer's matrices moved from the tiny Llama's; norms are no part of an adapter."""
    before = weights(make_llama())
    pairs = [
        (part.double(), before[name].double())
        for name, part in weights(model).items()
        if f"{layer}." in name and part.dim() == 2
    ]
    moved = sum(float((here - there).norm()) ** 2 for here, there in pairs)
    return float((moved / sum(float(there.norm()) ** 2 for _, there in pairs)) ** 0.5)


@pytest.mark.parametrize("by_name", [False, True])
def test_the_model_is_restored(by_name: bool) -> None:
    model, reference = eroded(), start()
    seen: list[tuple[int, int]] = []
    with untouched(model):
        divergence(
            *(model, weights(reference) if by_name else reference, WORLD.behaviors()[0]),
            max_new_tokens=1,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen == [(at + 1, 6) for at in range(6)]


def test_a_plain_model() -> None:
    model, reference = PlainLM(), PlainLM()
    found = divergence(model, reference, [[3, 4], [5, 6]], max_new_tokens=2)
    assert [layer.layer for layer in found.layers][:2] == ["embed", "blocks.0"]
    assert found.forward.mean > 0


def test_impossible_tokens_are_no_nan() -> None:
    class Masked(nn.Module):
        def __init__(self, size: float) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(1, 1)])
            self.scale = nn.Parameter(torch.tensor(size))

        def forward(self, ids: Tensor) -> Tensor:
            logits = torch.stack([ids * self.scale, -ids * self.scale], -1)
            logits = self.blocks[0](logits[..., :1]) * 0 + logits
            return nn.functional.pad(logits, (0, 1), value=float("-inf"))

    found = divergence(Masked(0.1), Masked(0.2), [[1, 2]], responses=[[1]], layers=())
    assert 0 < found.forward.mean < 1


def test_what_does_not_fit_is_refused() -> None:
    model = make_llama()
    with pytest.raises(ConfigError, match="mapping is empty"):
        divergence(model, {}, PROMPTS)
    with pytest.raises(ConfigError, match="matches 0 of"):
        divergence(model, nudged(), PROMPTS, layers=["layers.7"])
    with pytest.raises(BehaviorError, match="one response per prompt"):
        divergence(model, nudged(), PROMPTS, responses=RESPONSES[:1])
    with pytest.raises(ConfigError, match="same model"):
        divergence(model, start(), PROMPTS, responses=RESPONSES)


class Blocks(nn.Module):
    """Tokens to logits at each position, through an nn.Sequential of blocks."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(2)]
        self.embed, self.b, self.head = (
            nn.Embedding(32, 8),
            nn.Sequential(*blocks),
            nn.Linear(8, 32),
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.b(self.embed(input_ids)))


class FixedLength(nn.Module):
    """Four tokens in, the logits of the next one out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 8), nn.Linear(4 * 8, 32)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embed(input_ids).flatten(1))


def shifted(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for part in other.parameters():
            part.mul_(1.1)
    return other


@pytest.mark.parametrize("layers", [None, [], ["b.0.1"]])
def test_a_model_without_a_list_of_blocks_is_compared_by_weights(layers: list[str] | None) -> None:
    torch.manual_seed(0)
    model = Blocks()
    reference = shifted(model)
    found = divergence(model, reference, [[3, 8, 11, 4]] * 2, responses=[[5, 6]] * 2, layers=layers)
    ids = torch.tensor([[3, 8, 11, 4, 5]])
    log_p, log_q = (one(ids)[0, -2:].double().log_softmax(-1) for one in (reference, model))
    assert found.forward.mean == pytest.approx(
        float((log_p.exp() * (log_p - log_q)).sum(1).mean()), rel=1e-4
    )
    assert all(layer.activation_change is None for layer in found.layers)
    assert found.layers[0].relative_change == pytest.approx(0.1 / 1.1)


def test_a_model_of_fixed_length_is_a_sentence_and_right_for_one_token() -> None:
    torch.manual_seed(0)
    model = FixedLength()
    reference = shifted(model)
    prompts = [[3, 8, 11, 4], [3, 9, 9, 30]]
    for given in ({}, {"responses": [[5, 6]] * 2}):
        with pytest.raises(BehaviorError, match="pass responses= of one token each"):
            divergence(model, reference, prompts, **given)
    found = divergence(model, reference, prompts, responses=[[5], [6]])
    log_p, log_q = (one(torch.tensor(prompts)).log_softmax(-1) for one in (reference, model))
    expected = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
    assert found.forward.mean == pytest.approx(expected, rel=1e-4)
