"""Shared prefixes are used in half precision too, and faults are still found there."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from riprap import Behavior, Monitor, evaluation
from riprap.behaviors import TokenBatch
from riprap.behaviors import _prefix_cache as prefix_cache
from riprap.behaviors._branch_logits import branch_logits
from tiny import make_llama

COMMON = list(range(3, 33))
ROWS = [[*COMMON, 40 + i, 60 - i] for i in range(16)]
SHORT = [row[20:] for row in ROWS]
IDS = torch.tensor(ROWS)
WHOLE_TOKENS, SHARED_TOKENS = 16 * 32, 30 + 16 * 2
BF16 = torch.bfloat16
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* before training"),
    pytest.mark.filterwarnings("ignore:.*training runs under"),
]


def words() -> Behavior:
    return Behavior.next_token("words", ROWS, list(range(16)))


def make_model(scale: float = 3.0) -> Any:
    """A Llama whose logits bf16 rounds by more than the tolerance of float32."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def count_tokens(model: nn.Module, run: Any) -> tuple[int, Any]:
    """Run something; return the number of tokens that the model computed, and the result."""
    counts: list[int] = []

    def count(_: nn.Module, args: Any, kwargs: Any) -> None:
        counts.append((args[0] if args else kwargs["input_ids"]).numel())

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    result = run()
    handle.remove()
    return sum(counts), result


def whole_rows(model: Any, autocast: bool) -> np.ndarray:
    """Margins of whole rows, by other code."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad(), torch.autocast("cpu", BF16, enabled=autocast):
        hidden = model.model(IDS).last_hidden_state[:, -1]
    logits = (hidden.float() @ model.lm_head.weight.detach().float().T).double()
    right = torch.eye(97)[:16].bool()
    return (logits[right] - logits.masked_fill(right, float("-inf")).max(-1).values).numpy()


def close(found: np.ndarray, wanted: np.ndarray, within: float) -> bool:
    return bool(np.abs(found - wanted).max() <= within * np.abs(wanted).max())


def step(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", BF16):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("given", [None, BF16])
def test_prefixes_are_shared_where_training_runs_under_autocast(given: Any) -> None:
    model = make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = Monitor([words()], probe_every=1, autocast=given)
    with monitor.watch(model, optimizer):
        step(model, optimizer)
        tokens, _ = count_tokens(model, lambda: step(model, optimizer))
        tokens -= WHOLE_TOKENS  # training's own
    margins = monitor.behavior_histories["words"].margins[-1]
    assert tokens == SHARED_TOKENS
    assert close(margins, whole_rows(model, autocast=True), 2e-2)
    assert not close(margins, whole_rows(model, autocast=False), 1e-4)


def test_prefixes_are_shared_under_accelerates_autocast_and_where_forward_sets_it() -> None:
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(make_model())
    own = make_model()
    forward = own.forward

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", BF16):
            return forward(*args, **kwargs)

    under_autocast.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    own.forward = under_autocast
    wanted = whole_rows(make_model(), autocast=True)
    for model in (prepared, own):
        evaluation.evaluate(words(), model)
        tokens, found = count_tokens(model, lambda m=model: evaluation.evaluate(words(), m))
        assert tokens == SHARED_TOKENS
        assert close(found.margins, wanted, 2e-2)


def test_branches_are_packed_under_autocast() -> None:
    model = make_model().eval()
    batch, branches = TokenBatch.pad(ROWS), [(5,), (6,), (5, 7)]
    with torch.no_grad(), torch.autocast("cpu", BF16):
        branch_logits(model, batch, branches)
        tokens, found = count_tokens(model, lambda: branch_logits(model, batch, branches))
        row = torch.tensor([[*ROWS[3], 5, 7]])
        wanted = model(row).logits[0, -1]
    assert tokens == 30 + 16 * (2 + len(branches))
    assert (found[3, 3] - wanted).abs().max() < 2e-2 * wanted.abs().max()


def test_a_resumed_run_shares_as_the_uninterrupted_one_does() -> None:
    def watch(monitor: Monitor, model: Any, count: int) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with monitor.watch(model, optimizer):
            for _ in range(count):
                step(model, optimizer)
            return monitor.state_dict()

    whole, first, second = (Monitor([words()], probe_every=1) for _ in range(3))
    watch(whole, make_model().train(), 5)
    model = make_model().train()
    second.load_state_dict(watch(first, model, 2))
    again = make_model().train()  # nothing is known about it, as in a new process
    again.load_state_dict(model.state_dict())
    watch(second, again, 3)
    left, right = (m.behavior_histories["words"] for m in (whole, second))
    assert list(left.steps) == list(right.steps)
    for mine, other in zip(left.margins, right.margins, strict=True):
        np.testing.assert_array_equal(mine, other)


def with_fault(model: Any, shift: int, only_under_autocast: bool = False) -> Any:
    """Make a model compute other positions after a cache."""
    forward = model.forward

    def faulty(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        wrong = torch.is_autocast_enabled("cpu") or not only_under_autocast
        if kwargs.get("past_key_values") is not None and wrong:
            position_ids = position_ids + shift
        return forward(*args, position_ids=position_ids, **kwargs)

    faulty.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = faulty
    return model


@pytest.mark.parametrize(
    ("scale", "half", "effect"),
    [(1.0, False, 1e-3), (3.0, False, 0.3), (3.0, True, 0.3)],
    ids=["smaller than rounding", "autocast", "half weights"],
)
def test_a_wrong_cache_is_refused_in_half_precision(
    scale: float, half: bool, effect: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(scale).eval()
    model = with_fault(model.bfloat16() if half else model, shift=3)
    autocast = None if half else BF16
    evaluation.evaluate(words(), model, autocast=autocast)
    found = evaluation.evaluate(words(), model, autocast=autocast).margins
    monkeypatch.setattr(prefix_cache, "plan_agrees", lambda *_: True)
    wrong = evaluation.evaluate(words(), model, autocast=autocast).margins
    monkeypatch.setattr(prefix_cache, "plan_agrees", lambda *_: False)
    wanted = evaluation.evaluate(words(), model, autocast=autocast).margins
    np.testing.assert_array_equal(found, wanted)
    assert not close(wrong, wanted, effect)


@pytest.mark.parametrize("accelerate", [False, True])
def test_a_check_counts_for_its_own_precision_only(accelerate: bool) -> None:
    model = with_fault(make_model(), shift=3, only_under_autocast=True)
    if accelerate:
        model = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    evaluation.evaluate(words(), model, autocast=False)
    tokens, _ = count_tokens(model, lambda: evaluation.evaluate(words(), model, autocast=False))
    assert tokens == SHARED_TOKENS
    given = None if accelerate else BF16
    found = evaluation.evaluate(words(), model, autocast=given).margins
    assert close(found, whole_rows(make_model(), autocast=True), 1e-5)


class Neighbors(nn.Module):
    """Each logit depends a little on all tokens of the row, padding included."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(97, 64), nn.Linear(64, 97)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.embed(input_ids)
        return self.head(hidden + 0.001 * hidden.sum(1, keepdim=True))


def test_padding_that_changes_logits_a_little_is_found_under_autocast() -> None:
    model = Neighbors()
    rows = [SHORT[0], ROWS[1]]
    behavior = Behavior.next_token("words", rows, [5, 6])
    found = evaluation.evaluate(behavior, model, autocast=BF16).margins
    for index, row in enumerate(rows):
        alone = Behavior.next_token("words", [row], [5 + index])
        wanted = evaluation.evaluate(alone, model, autocast=BF16).margins
        assert found[index] == pytest.approx(wanted[0], abs=1e-6)


def test_a_state_that_the_monitor_was_given_ends_with_the_watch() -> None:
    model = make_llama()
    ids = torch.randint(3, 47, (8, 7), generator=torch.Generator().manual_seed(2))
    behavior = Behavior.next_token("words", ids, [5] * 8)
    before = evaluation.evaluate(behavior, model).margins
    half = evaluation.evaluate(behavior, model, autocast=BF16).margins
    assert not np.array_equal(before, half)
    monitor = Monitor([behavior], autocast=BF16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with monitor.watch(model, optimizer):
        np.testing.assert_array_equal(evaluation.evaluate(behavior, model).margins, half)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    np.testing.assert_array_equal(monitor.behavior_histories["words"].margins[-1], half)
    np.testing.assert_array_equal(evaluation.evaluate(behavior, model).margins, before)


def test_a_watch_that_does_not_begin_leaves_no_state_on_the_model() -> None:
    model = make_llama()
    rows = torch.randint(3, 47, (8, 7), generator=torch.Generator().manual_seed(2))
    behavior = Behavior.next_token("words", rows, [5] * 8)
    before = evaluation.evaluate(behavior, model).margins

    def fails(_model: Any, _inputs: Any) -> Tensor:
        raise ValueError("no margin")

    monitor = Monitor([Behavior("bad", rows, fails)], autocast=BF16)
    with pytest.raises(Exception, match="no margin"):
        monitor.begin(model, torch.optim.SGD(model.parameters(), lr=0.0))
    np.testing.assert_array_equal(evaluation.evaluate(behavior, model).margins, before)
