"""A shared pass gives the same results as one pass for each behavior."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior, evaluation
from riprap.behaviors import ResponsePrefix, TokenBatch
from tiny import Bigram, PlainLM, make_llama, token

LONG = torch.tensor([[3, 7, 9, 12, 4], [3, 8, 10, 4, 4], [5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])


def prefix_behavior(name: str, rows: list[list[int]], prefixes: list[int]) -> Behavior:
    return Behavior(name, TokenBatch.pad(rows), ResponsePrefix(prefixes, avoid=False))


def watched() -> list[Behavior]:
    return [
        Behavior.next_token("short", LONG[:, :3], [9, 11, 30, 2]),
        Behavior.next_token("long", LONG, [5, 6, 7, 8]),
        prefix_behavior("ragged", [[3, 7], [3, 8, 9, 10], [4, 5, 6]], [token("sorry")]),
        prefix_behavior("also short", LONG[:2, :3].tolist(), [8, 9]),
        Behavior("custom", LONG, lambda model, ids: probing_logits(model, ids)[:, 3]),
    ]


def probing_logits(model: nn.Module, ids: Tensor) -> Tensor:
    output = model(ids)
    return getattr(output, "logits", output)[:, -1]


class Turned(nn.Module):
    """Model with a mask and no position ids, whose blocks get time first, then batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.position = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 60)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        places = torch.arange(ids.shape[1])
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        hidden = ((self.embed(ids) + self.position(places)) * mask[..., None]).transpose(0, 1)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden.cumsum(0)))
        return self.head(hidden.transpose(0, 1))


@pytest.mark.parametrize("build", [lambda: make_llama().eval(), Turned, Bigram])
def test_shared_passes_equal_single_passes(build: type) -> None:
    model, behaviors = build(), watched()
    parameters, layer = list(model.parameters()), evaluation.find_layer(model)
    layers = [] if layer is None else [layer]
    together: dict[str, evaluation.ProbeResult] = {}
    for group in evaluation.group_by_forward_pass(behaviors, model):
        together |= evaluation.evaluate_batch(group, model, parameters, layers)
    assert together.keys() == {behavior.name for behavior in behaviors}
    for behavior in behaviors:
        alone, result = (
            evaluation.evaluate(behavior, model, parameters, layers),
            together[behavior.name],
        )
        np.testing.assert_allclose(result.margins, alone.margins, rtol=1e-4, atol=1e-4)
        assert result.gradient is not None
        assert alone.gradient is not None
        for mine, theirs in zip(result.gradient, alone.gradient, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        assert result.activations.keys() == alone.activations.keys()
        for name, rows in alone.activations.items():
            torch.testing.assert_close(result.activations[name], rows, rtol=1e-4, atol=1e-4)
        assert result.logits is not None
        torch.testing.assert_close(result.logits, alone.logits, rtol=1e-4, atol=1e-4)


def test_a_transformer_needs_one_pass_for_all_last_logits_margins() -> None:
    groups = evaluation.group_by_forward_pass(watched(), make_llama())
    names = [[behavior.name for behavior in group] for group in groups]
    assert names == [["short", "long", "ragged", "also short"], ["custom"]]


def test_probes_of_different_lengths_are_not_padded_for_a_model_that_cannot_pad() -> None:
    model, behaviors = PlainLM(), [b for b in watched() if b.name != "ragged"]
    groups = evaluation.group_by_forward_pass(behaviors, model)
    names = [[behavior.name for behavior in group] for group in groups]
    assert names == [["short", "also short"], ["long"], ["custom"]]
    for group in groups:
        assert evaluation.evaluate_batch(group, model).keys() == {b.name for b in group}


def test_activations_without_a_row_for_each_probe_are_left_out() -> None:
    result = evaluation.evaluate(
        Behavior.next_token("long", LONG, [5, 6, 7, 8]), Turned(), layers=["blocks.1"]
    )
    assert result.activations == {}
    assert result.logits is not None


def test_probes_that_begin_alike_share_a_pass_of_their_own() -> None:
    """Mixed with others they would have no common beginning, and compute it for each row."""
    start = list(range(10, 22))
    chat = [Behavior.next_token(name, [[*start, i, i + 1] for i in range(4)], LONG[0, :4].tolist())
            for name in ("one", "two")]  # fmt: skip
    model = make_llama()
    groups = evaluation.group_by_forward_pass([chat[0], watched()[0], chat[1]], model)
    assert [[b.name for b in group] for group in groups] == [["one", "two"], ["short"]]
    evaluation.evaluate_batch(groups[0], model)
    tokens: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, named: tokens.append((*args, *named.values())[0].numel()), with_kwargs=True
    )
    evaluation.evaluate_batch(groups[0], model)
    assert sum(tokens) == 12 + 8 * 2
