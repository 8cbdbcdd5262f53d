"""Rows that cannot be selected are left out of the backward pass, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from riprap.selection import Scores, Selector, _partial_backward
from riprap.selection.strategies import Moderate
from selection.cases import Sequential, batch, trained
from selection.test_loops import close, flat, plain, rows_of, sgd, training

ROWS = 10


@pytest.fixture(autouse=True)
def split_small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_partial_backward, "MIN_ELEMENTS", 0)


class Noting(Moderate):
    """`moderate` that notes its scores."""

    def candidates(self, scores: Scores) -> Any:
        return super().candidates(scores)

    def choose(self, scores: Scores, count: int, rng: Any) -> Any:
        self.scores = scores
        return super().choose(scores, count, rng)


def skipped_rows(model: Any, given: dict, strategy: Any, **options: Any) -> tuple[set[int], Any]:
    """Return the rows whose gradient in the first layer's input is 0, and the selector."""
    grads: list[Tensor] = []
    inner = next(m for m in model.modules() if type(m).__name__ == "LlamaDecoderLayer")
    down = inner.mlp.down_proj
    handle = down.register_forward_pre_hook(
        lambda _, args: args[0].register_hook(grads.append) and None, prepend=True
    )
    selector = Selector(strategy, options.pop("ratio", 0.2))
    with selector.attach(model, sgd(model), **options):
        model(**given).loss.backward()
    handle.remove()
    return {row for row in range(len(grads[0])) if not grads[0][row].any()}, selector


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["", "new", "reentrant"])
@pytest.mark.parametrize("name", ["lora", "dora", "llama", "tied llama", "gpt2"])
def test_the_gradient_is_that_of_the_selected_rows(name: str, how: str) -> None:
    model, given = training(name), batch(ROWS)
    expected = Sequential(model).gradients(given).norm(dim=1)
    if how:
        model.gradient_checkpointing_enable({"use_reentrant": how == "reentrant"})
        model.enable_input_require_grads()
    noting = Noting()
    selector = Selector(noting, 0.3)
    with selector.attach(model, sgd(model)):
        model(**given).loss.backward()
        got = flat(model)
    measured = np.flatnonzero(np.isfinite(noting.scores.norm))
    assert 3 <= len(measured) < ROWS
    assert np.allclose(noting.scores.norm[measured], expected[measured], rtol=1e-5)
    assert selector.history[0].detail == ""
    assert close(got, plain(model, rows_of(given, selector.history[0].rows)))


def test_rows_outside_of_the_candidates_are_left_out() -> None:
    model, given = training("lora"), batch(ROWS)
    noting = Noting()
    skipped, selector = skipped_rows(model, given, noting)
    unmeasured = set(np.flatnonzero(np.isnan(noting.scores.norm)).tolist())
    assert skipped == unmeasured != set()
    assert not skipped & set(selector.history[0].rows)


class Middle(Moderate):
    """Another choice by all norms, in a subclass that does not say what it reads."""

    def choose(self, scores: Scores, count: int, rng: Any) -> Any:
        norms = scores.require("norm")
        assert np.isfinite(norms).all()
        return np.argsort(norms)[:count]


@pytest.mark.parametrize(
    ("strategy", "options"),
    [("high", {}), (Middle(), {}), ("moderate", {"ratio": 1.0})],
    ids=["high", "subclass", "all rows"],
)
def test_no_row_is_left_out_that_may_be_selected(strategy: Any, options: dict) -> None:
    skipped, _ = skipped_rows(training("lora"), batch(ROWS), strategy, **options)
    assert skipped == set()


def test_two_passes_in_one_backward_leave_no_row_out() -> None:
    model, parts = training("lora"), [batch(6, seed=1), batch(6, seed=2)]
    noting = Noting()
    with Selector(noting, 0.25).attach(model, sgd(model)):
        sum(model(**given).loss for given in parts).backward()
    assert np.isfinite(noting.scores.norm).all()
    assert len(noting.scores) == 12


def test_more_passes_before_a_step_leave_no_row_out() -> None:
    model, given = training("lora"), batch(12)
    noting = Noting()
    with Selector(noting, 0.25).attach(model, sgd(model), accumulate=2):
        for rows in (range(6), range(6, 12)):
            model(**rows_of(given, [*rows])).loss.backward()
    assert np.isfinite(noting.scores.norm).all()


def test_a_batch_whose_dimensions_cannot_be_told_apart_is_run_whole() -> None:
    skipped, _ = skipped_rows(training("lora"), batch(7, length=7), "moderate")
    assert skipped == set()


def test_layers_are_as_before_after_an_error_and_after_training() -> None:
    model, given = training("lora"), batch(ROWS)
    wanted = plain(model, given)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))

    def fail(*_: Any) -> None:
        raise RuntimeError("stop")

    with Selector("moderate", 0.3).attach(model, sgd(model)):
        handle = linear.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="stop"):
            model(**given)
        handle.remove()
        model(**given).loss.backward()
        assert flat(model).isfinite().all()
    assert close(plain(model, given), wanted, 1e-9)
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert after == hooks
    assert all(p.requires_grad for p in trained(model).values())
    assert torch.is_grad_enabled()
