"""A selector around a loop: the same rows and gradient as a slow reference, under every loop."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from riprap.selection import Scores, Selector
from selection.cases import Sequential, batch, lora, make, trained
from tiny import make_llama


def training(name: str = "llama") -> Any:
    """In training mode, without dropout, which no reference could repeat."""
    model = make(name).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained(model).values(), lr=0.05)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in trained(model).values()]).detach().clone()


def close(one: Tensor, other: Tensor, rtol: float = 1e-5) -> bool:
    """Transformers' loss is worked out in float32 whatever the model is in."""
    return bool((one - other).norm() <= rtol * other.norm())


def plain(model: Any, given: dict, **more: Any) -> Tensor:
    model.zero_grad()
    model(**given, **more).loss.backward()
    found = flat(model)
    model.zero_grad()
    return found


def rows_of(given: dict, rows: list[int]) -> dict:
    return {key: value[rows] for key, value in given.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "llama"])
def test_fifty_batches_are_chosen_as_one_backward_a_sample_would(name: str) -> None:
    model = training(name)
    optimizer, slow = sgd(model), Sequential(model)
    selector = Selector("moderate", 0.25)
    for seed in range(50):
        given = batch(8, seed=seed)
        norms = slow.gradients(given).norm(dim=1).numpy()
        losses = [model(**rows_of(given, [row])).loss.item() for row in range(8)]
        scores = Scores(np.array(losses), np.full(8, 5), norms)
        expected = selector.choose(scores).tolist()
        wanted = plain(model, rows_of(given, expected))
        with selector.attach(model, optimizer):
            model(**given).loss.backward()
            assert selector.history[-1].rows == expected
            assert close(flat(model), wanted)
            optimizer.step()
            optimizer.zero_grad()
    assert len({tuple(taken.rows) for taken in selector.history}) > 20


@pytest.mark.parametrize("strategy", ["moderate", "proxy", "random"])
@pytest.mark.parametrize("name", ["lora", "dora", "llama", "gpt2"])
@pytest.mark.parametrize("items", [None, 31])
def test_all_rows_are_plain_training(name: str, strategy: str, items: int | None) -> None:
    model, given = training(name), batch()
    more = {} if items is None else {"num_items_in_batch": items}
    wanted = plain(model, given, **more)
    with Selector(strategy, 1.0).attach(model, sgd(model)):
        model(**given, **more).loss.backward()
        assert close(flat(model), wanted, 1e-6)


@pytest.mark.parametrize("strategy", ["moderate", "proxy", "moderate_by_loss"])
def test_eight_small_batches_are_one(strategy: str) -> None:
    """Under num_items_in_batch, whose tokens are those of the whole step."""
    model, given = training("lora"), batch(16)
    items = int((given["labels"][:, 1:] != -100).sum())
    whole, parts = Selector(strategy, 0.25), Selector(strategy, 0.25)
    optimizer = sgd(model)
    with whole.attach(model, optimizer):
        model(**given, num_items_in_batch=items).loss.backward()
        wanted = flat(model)
    model.zero_grad()
    with parts.attach(model, optimizer, accumulate=8):
        for start in range(0, 16, 2):
            assert all(p.grad is None for p in trained(model).values())
            rows = rows_of(given, [start, start + 1])
            model(**rows, num_items_in_batch=items).loss.backward()
        assert close(flat(model), wanted)
    assert parts.history[0].rows == whole.history[0].rows
    assert len(parts.history[0].rows) == 4


def test_more_memory_than_there_is_room_for_runs_rows_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, given = training("tied llama"), batch(10)
    found = []
    for room in (2**31, 0):
        monkeypatch.setattr("riprap.selection._loop_hooks.MAX_KEPT_BYTES", room)
        selector = Selector("moderate", 0.3)
        with selector.attach(model, sgd(model)):
            model(**given).loss.backward()
            found.append((selector.history[0].rows, flat(model)))
        model.zero_grad()
    assert found[0][0] == found[1][0]
    assert close(found[0][1], found[1][1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("strategy", ["moderate", "proxy"])
@pytest.mark.parametrize(("name", "room"), [("lora", 2**31), ("tied llama", 0)])
def test_checkpointing_changes_nothing(
    name: str, room: int, strategy: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reentrant: the layers run without a graph first, and autograd sees no parameter of theirs."""
    monkeypatch.setattr("riprap.selection._loop_hooks.MAX_KEPT_BYTES", room)
    found = []
    for checkpointing in (False, True):
        model = training(name)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        selector = Selector(strategy, 0.4)
        with selector.attach(model, sgd(model)):
            model(**batch()).loss.backward()
            found.append((selector.history[0], flat(model)))
    by = "norm" if strategy == "moderate" else "proxy"
    assert found[0][0].rows == found[1][0].rows
    assert np.allclose(found[0][0].scores[by], found[1][0].scores[by], rtol=1e-6)
    assert found[0][1].norm() > 0
    assert close(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["lora", "tied llama"])
def test_nothing_is_kept_after_a_step(name: str) -> None:
    model = training(name)
    optimizer, sizes = sgd(model), []
    with Selector("moderate", 0.4).attach(model, optimizer):
        for _ in range(3):
            model(**batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            gc.collect()
            alive = [one for one in gc.get_objects() if isinstance(one, Tensor)]
            sizes.append(sum(one.nbytes for one in alive))
    optimizer.zero_grad()
    gc.collect()
    alive = [one for one in gc.get_objects() if isinstance(one, Tensor)]
    assert sizes[0] == sizes[2] == sum(one.nbytes for one in alive)


@pytest.mark.parametrize("room", [2**31, 0])
@pytest.mark.parametrize("strategy", ["high", "random"])
def test_what_no_row_reaches_is_given_no_gradient(
    strategy: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient of 0 would let weight decay eat it."""
    monkeypatch.setattr("riprap.selection._loop_hooks.MAX_KEPT_BYTES", room)
    model = training("lora")
    model.spare = nn.Linear(2, 2)
    with Selector(strategy, 0.4).attach(model, sgd(model)):
        model(**batch()).loss.backward()
    assert model.spare.weight.grad is None
    assert all(p.grad is not None for n, p in trained(model).items() if "spare" not in n)


@pytest.mark.parametrize("strategy", ["moderate", "proxy"])
def test_under_autocast_all_rows_are_plain_training(strategy: str) -> None:
    model, given = lora(make_llama).float().train(), batch()
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with torch.autocast("cpu", torch.bfloat16):
        wanted = plain(model, given)
    with Selector(strategy, 1.0).attach(model, sgd(model)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**given).loss
        loss.backward()
        assert close(flat(model), wanted, 2e-2)


def test_scaled_losses_give_scaled_gradients_and_true_norms() -> None:
    model, given = training("lora"), batch()
    found = []
    for scale in (1.0, 1024.0):
        selector = Selector("moderate", 0.4)
        with selector.attach(model, sgd(model)):
            (model(**given).loss * scale).backward()
            found.append((selector.history[0], flat(model) / scale))
        model.zero_grad()
    assert found[0][0].rows == found[1][0].rows
    assert np.allclose(found[0][0].scores["norm"], found[1][0].scores["norm"])
    assert close(found[1][1], found[0][1])


def test_an_overflow_is_left_for_the_scaler_to_find() -> None:
    model = training("lora")
    selector = Selector("moderate", 0.4)
    with selector.attach(model, sgd(model)):
        (model(**batch()).loss * torch.inf).backward()
        assert not flat(model).isfinite().all()
    assert selector.history[0].rows == [0, 1, 2, 3, 4]
    assert "not finite" in selector.history[0].detail


def test_row_ids_are_noted_and_never_reach_the_model(tmp_path: Any) -> None:
    model, given = training("lora"), batch()
    selector = Selector("high", 0.4, row_id="id", log=tmp_path / "taken.jsonl")
    with selector.attach(model, sgd(model)):
        model(**given, id=torch.tensor([11, 12, 13, 14, 15])).loss.backward()
    assert set(selector.history[0].rows) < {11, 12, 13, 14, 15}
    assert '"strategy": "high"' in (tmp_path / "taken.jsonl").read_text(encoding="utf-8")
