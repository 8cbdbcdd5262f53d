"""Shared prefixes are computed once; margins and gradients are those of full rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from riprap import Behavior, evaluation
from riprap.behaviors import _prefix_cache as prefix_cache
from riprap.behaviors import accepted_arguments
from tiny import PlainLM, make_gpt2, make_llama, make_tokenizer

BEGINNING = [3, 7, 9, 12, 30, 31, 5, 6, 8, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21]
ROWS = [[*BEGINNING, *tail] for tail in ([9, 12], [8], [5, 6, 7, 8, 9], [30, 31], [12, 9], [40])]
TOKENIZER = make_tokenizer()
PROMPTS = ["how to make a bomb " * 5 + end for end in ("one", "two", "three four", "how", "a b")]
OPTIONS = [["sorry no", "yes", "five six seven"]] * len(PROMPTS)


def behaviors() -> list[Behavior]:
    return [
        Behavior.next_token("words", ROWS, [9, 11, 30, 12, 4, 5]),
        Behavior.multiple_choice("choice", TOKENIZER, PROMPTS, OPTIONS, [0, 1, 2, 0, 1]),
        Behavior.likelihood(
            "said", TOKENIZER, texts=["no", "five six", "a", "b", "sorry"], prompts=PROMPTS
        ),
    ]


def model_of(kind: str) -> Any:
    if kind == "gpt2":
        return make_gpt2().eval()
    model = make_llama().eval()
    if kind == "half":
        return model.bfloat16()
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model


class Counting:
    """Counts the tokens that a model computes."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self.add, with_kwargs=True)

    def add(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.tokens += (args[0] if args else kwargs["input_ids"]).numel()

    def of(self, behavior: Behavior, model: nn.Module) -> int:
        before = self.tokens
        evaluation.evaluate(behavior, model)
        return self.tokens - before


@pytest.mark.parametrize("kind", ["llama", "gpt2", "lora"])
@pytest.mark.parametrize("behavior", behaviors(), ids=lambda b: b.name)
def test_margins_gradients_and_features_are_those_of_full_rows(
    kind: str, behavior: Behavior, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind)
    evaluation.calibrate(behavior, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    layer = evaluation.find_layer(model)
    assert layer is not None
    counting = Counting(model)
    counting.of(behavior, model)  # the first pass compares
    short = evaluation.evaluate(behavior, model, parameters, [layer])
    fewer = counting.of(behavior, model)
    monkeypatch.setattr(prefix_cache, "saves_compute", lambda *_: False)
    whole = evaluation.evaluate(behavior, model, parameters, [layer])
    assert 1.4 * fewer < counting.of(behavior, model)
    assert short.margins == pytest.approx(whole.margins, abs=2e-4)
    torch.testing.assert_close(short.activations, whole.activations, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(short.logits, whole.logits, atol=2e-4, rtol=1e-4)
    assert short.gradient is not None and whole.gradient is not None
    for left, right in zip(short.gradient, whole.gradient, strict=True):
        scale = right.abs().max()
        torch.testing.assert_close(left, right, atol=float(1e-4 * scale + 1e-7), rtol=1e-3)


def test_a_model_that_fails_the_check_computes_full_rows() -> None:
    """A model that ignores the positions must not be used with the cache."""
    model = make_llama().eval()
    forward = model.forward

    def deaf(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:
            position_ids = position_ids * 0
        return forward(*args, position_ids=position_ids, **kwargs)

    deaf.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    honest = evaluation.evaluate(behaviors()[0], make_llama().eval()).margins
    model.forward = deaf
    for _ in range(3):
        found = evaluation.evaluate(behaviors()[0], model).margins
        assert found == pytest.approx(honest, abs=1e-5)


def test_models_without_a_cache_compute_full_rows() -> None:
    model = PlainLM().eval()
    rows = [row[:21] for row in ROWS]
    counting = Counting(model)
    behavior = Behavior.next_token("words", rows, [9, 11, 30, 12, 4, 5])
    counting.of(behavior, model)
    assert counting.of(behavior, model) == 6 * 21


def test_compiled_models_compute_full_rows() -> None:
    model = make_llama().eval()
    compiled = torch.compile(model, backend="eager")
    counting = Counting(model)
    behavior = behaviors()[0]
    counting.of(behavior, compiled)
    assert counting.of(behavior, compiled) == len(ROWS) * max(map(len, ROWS))
    assert accepted_arguments(compiled) >= prefix_cache.REQUIRED_ARGUMENTS


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=7),
    st.integers(1, 3),
    st.data(),
)
def test_a_plan_loses_no_token(rows: list[list[int]], width: int, data: st.DataObject) -> None:
    own = [data.draw(st.integers(1, len(row))) for row in rows]
    cut = prefix_cache.plan_prefix_sharing(rows, own, width)
    for index, row in enumerate(rows):
        prompt = cut.prompts[cut.group[index]] if cut.prompts else []
        assert [*cut.common, *prompt, *cut.suffixes[index]] == row
        assert len(cut.suffixes[index]) >= own[index]


def test_a_single_probe_has_a_prefix_and_suffixes() -> None:
    model = make_llama().eval()
    whole = evaluation.evaluate(behaviors()[1], model).margins
    for index in range(len(whole)):
        alone = evaluation.evaluate(behaviors()[1].subset([index]), model).margins
        assert alone[0] == pytest.approx(whole[index], abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "lora"])
def test_the_head_multiplies_no_slice_of_positions(kind: str) -> None:
    """On a CPU, the product with a slice takes ten times as long as that with a copy."""
    model, seen = model_of(kind), []
    head = model.get_output_embeddings()
    inner = head.forward
    head.forward = lambda x: seen.append(x.is_contiguous()) or inner(x)
    prefixes = ["sorry no", "sorry yes", "five six"]
    begins = Behavior.response_prefix("begins", TOKENIZER, PROMPTS, prefixes)
    lone = Behavior.next_token("lone", [[3, 7, 9], [4, 5, 6, 8]], [5, 6])  # without shared prefix
    for behavior in [*behaviors(), begins, lone]:
        evaluation.calibrate(behavior, model)
        evaluation.evaluate(behavior, model)
    assert seen
    assert all(seen)
    assert not head._forward_pre_hooks
