"""Probes are evaluated in chunks; results are those of all probes together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior, Monitor, evaluation
from riprap.behaviors import NextToken, TokenBatch
from riprap.errors import BehaviorError
from riprap.evaluation import _token_budget as token_budget
from riprap.evaluation._gradients import GradientSum
from tiny import PlainLM, make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
GENERATOR = torch.Generator().manual_seed(4)
ROWS = [torch.randint(6, 47, (n,), generator=GENERATOR).tolist() for n in (4, 9, 3, 7, 5, 9, 2, 6)]
TARGETS = [9, 11, 30, 12, 4, 5, 8, 7]
PROMPTS = ["what is " + end for end in ("one", "two plus three", "the car", "a", "red cake to do")]
OPTIONS = [["sorry no", "yes", "five six seven"]] * len(PROMPTS)


def behaviors() -> list[Behavior]:
    prefixes = ["sorry", "i cannot", "i do"]
    return [
        Behavior.next_token("words", ROWS, TARGETS),
        Behavior.response_prefix("starts", TOKENIZER, PROMPTS, prefixes),
        Behavior.multiple_choice("choice", TOKENIZER, PROMPTS, OPTIONS, [0, 1, 2, 0, 1]),
        Behavior.preference("prefers", TOKENIZER, PROMPTS, ["yes", "sure here"], ["no", "sorry"]),
        Behavior.likelihood("said", TOKENIZER, texts=["no", "five six", "a", "b", "sorry"],
                            prompts=PROMPTS),
    ]  # fmt: skip


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Sizes of the inputs of all passes."""
    seen: list[tuple[int, ...]] = []
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape)) if args else None
    )
    yield seen
    handle.remove()


def with_budget(model: Any, tokens: int) -> Any:
    token_budget.note_training_tokens(model, tokens)
    return model


@pytest.mark.parametrize("behavior", behaviors(), ids=lambda b: b.name)
@pytest.mark.parametrize("tokens", [1, 20, 45])
def test_results_of_chunks_are_those_of_all_probes(behavior: Behavior, tokens: int) -> None:
    """In float64, with gradients of the mean margin as one graph over all probes gives them."""
    whole, cut = (with_budget(make_llama().double(), n) for n in (10**6, tokens))
    layer = [str(evaluation.find_layer(whole))]
    evaluation.calibrate(behavior, whole)
    parameters = list(whole.parameters())
    expected = evaluation.evaluate(behavior, whole, parameters, layer)
    loss = evaluation.loss_gradient(behavior, whole, parameters)
    evaluation.calibrate(behavior, cut)
    calls: list[int] = []
    cut.register_forward_pre_hook(lambda *_: calls.append(1))
    found = evaluation.evaluate(behavior, cut, list(cut.parameters()), layer)
    assert len(calls) > 1
    np.testing.assert_allclose(found.margins, expected.margins, rtol=1e-5, atol=1e-5)
    assert found.insufficient == expected.insufficient
    torch.testing.assert_close(found.activations, expected.activations)
    torch.testing.assert_close(found.logits, expected.logits)
    pairs = [(found.gradient, expected.gradient)]
    pairs.append((evaluation.loss_gradient(behavior, cut, list(cut.parameters())), loss))
    for mine, theirs in pairs:
        assert mine is not None and theirs is not None
        for one, two in zip(mine, theirs, strict=True):
            scale = float(two.abs().max())
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * scale)


def test_the_gradient_is_that_of_the_mean_margin_in_float64() -> None:
    model = with_budget(PlainLM().double(), 8)
    ids = torch.randint(6, 47, (7, 4), generator=GENERATOR)
    behavior = Behavior.next_token("words", ids, TARGETS[:7])
    found = evaluation.evaluate(behavior, model, list(model.parameters())).gradient
    logits = model(ids)[:, -1]
    right = nn.functional.one_hot(torch.tensor(TARGETS[:7]), logits.shape[1]).bool()
    margins = logits[right] - logits.masked_fill(right, float("-inf")).amax(1)
    expected = torch.autograd.grad(margins.mean(), list(model.parameters()))
    assert found is not None
    for mine, theirs in zip(found, expected, strict=True):
        # logits are compared in float32
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_margins_of_ragged_probes_come_in_the_order_of_the_probes() -> None:
    model = with_budget(make_llama(), 18)
    behavior = behaviors()[0]
    found = evaluation.evaluate(behavior, model).margins
    alone = [evaluation.evaluate(behavior.subset([i]), model).margins[0] for i in range(len(ROWS))]
    np.testing.assert_allclose(found, alone, atol=1e-4)


def test_a_pass_is_not_larger_than_a_batch_of_training() -> None:
    """Also where several behaviors share it; but there are no more passes than needed."""
    model = make_llama().train()
    sizes: list[int] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ids = torch.randint(6, 47, (4, 10), generator=GENERATOR)
    probes = torch.randint(6, 47, (24, 5), generator=GENERATOR)
    watched = [Behavior.next_token(name, probes, [7] * 24, floor=0.01) for name in "ab"]
    monitor = Monitor(watched, probe_every=1)
    with monitor.watch(model, optimizer):
        model.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(
                (args[0] if args else kwargs["input_ids"]).numel()
            ),
            with_kwargs=True,
        )
        for _ in range(3):
            sizes.clear()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert max(sizes) == 40
    assert sum(sizes[1:]) == 2 * 24 * 5


def test_gradient_passes_keep_less_where_training_keeps_only_inputs_of_layers() -> None:
    model = with_budget(make_llama(), 90)
    assert token_budget.token_budget(model, gradients=True) == 90
    model.gradient_checkpointing_enable()
    assert token_budget.token_budget(model, gradients=False) == 90
    assert token_budget.token_budget(model, gradients=True) == int(90 * (1 / 16 + 1 / 3))


def test_margins_that_may_depend_on_other_probes_are_computed_together(widths: list[Any]) -> None:
    class Centered(NextToken):
        """Lead over the average lead."""

        def from_logits(self, logits: Tensor) -> Tensor:
            values = super().from_logits(logits)
            return values - values.mean()

    model = with_budget(PlainLM(), 4)
    ids = torch.randint(6, 47, (6, 4), generator=GENERATOR)
    behavior = Behavior("centered", TokenBatch(ids), Centered(torch.tensor(TARGETS[:6])))
    assert evaluation.evaluate(behavior, model).margins.sum() == pytest.approx(0, abs=1e-5)
    plain = Behavior("plain", ids, lambda m, x: m(x)[:, -1, 0])
    widths.clear()
    evaluation.evaluate(plain, model)
    assert widths[0] == (6, 4)


class Small(nn.Module):
    """A model on a device with little memory."""

    def __init__(self, rows: int, error: type[RuntimeError], text: str, backward: bool) -> None:
        super().__init__()
        self.inner, self.rows, self.seen = PlainLM(), rows, []
        self.fail, self.backward = lambda: error(text), backward

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.append(len(tokens))
        if self.backward:
            return _FailingBackward.apply(self.inner(tokens), self)
        if len(tokens) > self.rows:
            raise self.fail()
        return self.inner(tokens)


class _FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, model: Small) -> Tensor:
        ctx.model = model
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if len(gradient) > ctx.model.rows:
            raise ctx.model.fail()
        return gradient, None


ERRORS = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB"),
    (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("error", "text"), ERRORS, ids=["torch", "CPU"])
def test_a_pass_that_does_not_fit_into_memory_is_cut(
    error: type[RuntimeError], text: str, backward: bool
) -> None:
    ids = torch.randint(6, 47, (20, 4), generator=GENERATOR)
    behavior = Behavior.next_token("words", ids, [7] * 20)
    model = Small(3, error, text, backward)
    enough = copy.deepcopy(model)
    enough.rows = 20
    parameters, wanted = list(model.parameters()), list(enough.parameters())
    expected = evaluation.evaluate(behavior, enough, wanted)
    found = evaluation.evaluate(behavior, model, parameters)
    np.testing.assert_allclose(found.margins, expected.margins, rtol=1e-5)
    assert found.gradient is not None and expected.gradient is not None
    for one, two in zip(found.gradient, expected.gradient, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)
    model.seen.clear()
    evaluation.evaluate(behavior, model, parameters)
    assert max(model.seen) <= 3  # remembered
    model.rows = 0
    if backward:
        again = evaluation.evaluate(behavior, model, parameters)
        np.testing.assert_allclose(again.margins, expected.margins, rtol=1e-5)
        assert again.gradient is None and text in again.gradient_error
    else:
        with pytest.raises(error, match="allocate"):
            evaluation.evaluate(behavior, model, parameters)


def test_another_error_is_not_tried_again() -> None:
    model = Small(3, RuntimeError, "the wires are crossed", backward=False)
    ids = torch.randint(6, 47, (20, 4), generator=GENERATOR)
    with pytest.raises(RuntimeError, match="wires"):
        evaluation.evaluate(Behavior.next_token("words", ids, [7] * 20), model)
    assert model.seen == [20]


def test_the_sum_of_gradients_does_not_write_into_a_shared_one() -> None:
    """Autograd returns one tensor for two parameters that are added."""
    left, right = (torch.zeros(3, requires_grad=True) for _ in range(2))
    total = GradientSum()
    for scale in (1.0, 2.0, 3.0):
        value = ((left + right) * torch.tensor([1.0, 2.0, 3.0])).sum() * scale
        total.add(list(torch.autograd.grad(value, [left, right])))
    found = total.result()
    assert found is not None
    for part in found:
        torch.testing.assert_close(part, torch.tensor([6.0, 12.0, 18.0]))


def test_half_precision_gradients_are_added_in_float32() -> None:
    total = GradientSum()
    for _ in range(600):
        total.add([torch.ones(1, dtype=torch.bfloat16)])
    found = total.result()
    assert found is not None
    assert found[0].dtype == torch.bfloat16 and float(found[0]) == pytest.approx(600, rel=0.01)


def test_a_missing_calibration_is_said_in_chunks_too() -> None:
    with pytest.raises(BehaviorError, match="call `calibrate"):
        evaluation.evaluate(behaviors()[4], with_budget(make_llama(), 5))


@pytest.mark.parametrize("behavior", [behaviors()[0], behaviors()[2]], ids=lambda b: b.name)
def test_moments_and_single_gradients_of_chunks_are_those_of_all_probes(behavior: Any) -> None:
    """References: one graph over all probes, by a plain function that cannot be cut."""
    model = with_budget(make_llama().double(), 20)
    parameters = list(model.parameters())
    whole = Behavior(behavior.name, behavior.probes, lambda m, p: behavior.margins(m, p),
                     losses=lambda m, p: behavior.margins.losses(m, p))  # fmt: skip
    layers = evaluation.linear_layers(model, parameters)
    mine, theirs = (evaluation.layer_moments(b, model, layers, True) for b in (behavior, whole))
    torch.testing.assert_close(mine.errors, theirs.errors, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(
        {at: mine.inputs[at] for at in mine.inputs}, theirs.inputs, rtol=1e-4, atol=1e-6
    )
    for of in ("loss", "margin"):
        one, two = (evaluation.fisher_diagonal(b, model, parameters, of) for b in (behavior, whole))
        assert one is not None and two is not None
        for left, right in zip(one, two, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-6 * float(right.max()))
    some = [evaluation.margin_gradients(b, model, parameters, 3) for b in (behavior, whole)]
    assert some[0] is not None and some[1] is not None and len(some[0]) == len(some[1]) == 3
    for one, two in zip(*some, strict=True):
        for left, right in zip(one, two, strict=True):
            scale = float(right.abs().max())
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5 * scale)


def test_single_gradients_go_through_single_probes() -> None:
    model = PlainLM()
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    ids = torch.randint(6, 47, (8, 4), generator=GENERATOR)
    behavior = Behavior.next_token("words", ids, TARGETS)
    evaluation.margin_gradients(behavior, model, list(model.parameters()), 3)
    assert rows == [1, 1, 1]
