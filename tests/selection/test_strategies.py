"""What each strategy takes, of numbers written by hand; and what all of them have in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from riprap import selection
from riprap.errors import ConfigError
from riprap.selection import Scores, Selector
from riprap.selection._protected_directions import apply_preconditioner
from riprap.selection.strategies import ALL_STRATEGIES, Adaptive, High, get_strategy
from selection.cases import batch, make, reference, trained
from selection.test_loops import sgd, training


def scores(n: int = 10, seed: int = 0) -> Scores:
    made = np.random.default_rng(seed)
    factors = made.normal(size=(n, 30))
    return Scores(
        loss=made.gamma(2.0, size=n),
        tokens=made.integers(1, 9, n),
        norm=np.linalg.norm(factors, axis=1),
        proxy=made.gamma(2.0, size=n),
        harm={"a": made.normal(size=n), "b": made.normal(size=n)},
        directional={"danger": made.normal(size=n), "safety": made.normal(size=n)},
        gram=factors @ factors.T,
        lr=0.1,
        margin_spent=0.5,
        category=made.integers(0, 3, n),
    )


def taken(name: str, given: Scores, count: int) -> list[int]:
    noise = np.random.default_rng(0)
    return sorted(get_strategy(name).choose(given, count, noise).tolist())


@pytest.mark.parametrize("kind", ALL_STRATEGIES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("count", [1, 3, 9])
def test_every_strategy_takes_samples_of_the_batch_once(kind: type, count: int) -> None:
    given = scores()
    rows = taken(kind.name, given, count)
    assert len(rows) == len(set(rows))
    assert 1 <= len(rows) <= count
    assert set(rows) <= set(range(10))
    assert rows == taken(kind.name, given, count)


@pytest.mark.parametrize("kind", ALL_STRATEGIES, ids=lambda kind: kind.name)
def test_every_strategy_says_what_it_misses(kind: type) -> None:
    if kind.name in ("random", "moderate_by_loss"):
        return
    bare = Scores(np.arange(4.0), np.ones(4))
    with pytest.raises(ConfigError, match="needs"):
        get_strategy(kind.name).choose(bare, 2, np.random.default_rng(0))


def test_moderate_is_algorithm_1() -> None:
    given = scores(40)
    spread = [i for i in range(40) if abs(given.loss[i] - given.loss.mean()) <= given.loss.std()]
    middle = np.median([given.norm[i] for i in spread])
    expected = sorted(spread, key=lambda i: abs(given.norm[i] - middle))[:8]
    assert taken("moderate", given, 8) == sorted(expected)


def test_the_extremes() -> None:
    given = Scores(np.ones(5), np.ones(5), norm=np.array([3.0, 1.0, 5.0, 2.0, 4.0]))
    assert taken("low", given, 2) == [1, 3]
    assert taken("high", given, 2) == [2, 4]
    assert taken("moderate", given, 1) == [0]


def test_the_worst_behavior_counts() -> None:
    harm = {"a": np.array([0.0, -2.0, -1.0, 3.0]), "b": np.array([-9.0, 5.0, -2.0, -9.0])}
    given = Scores(np.ones(4), np.ones(4), harm=harm)
    assert taken("least_harm", given, 2) == [0, 2]


def test_taylor_takes_no_second_copy_while_there_is_something_new() -> None:
    """Two equal samples and a third: greedily, once one copy is taken, the other gains less."""
    rows = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 1.9]])
    given = Scores(np.ones(3), np.ones(3), gram=rows @ rows.T, lr=1.0)
    assert taken("taylor", given, 2) == [0, 2]


def test_risk_is_towards_danger_and_from_safety() -> None:
    along = {"danger": np.array([1.0, 0.0, 2.0]), "safety": np.array([3.0, 0.0, -1.0])}
    assert taken("risk", Scores(np.ones(3), np.ones(3), directional=along), 1) == [0]


def test_adaptive_takes_fewer_as_the_margin_is_spent() -> None:
    given, strategy = scores(100), Adaptive(min_ratio=0.1, inner=High())
    sizes = []
    for drift in (0.0, 0.5, 1.0):
        given.margin_spent = drift
        sizes.append(len(Selector(strategy, 0.5).choose(given)))
    assert sizes == [50, 30, 10]


def test_samples_without_response_tokens_are_never_taken() -> None:
    given = scores()
    given.tokens[:7] = 0
    for kind in ALL_STRATEGIES:
        inner = Selector("random", 0.5)
        inner.strategy = get_strategy(kind.name)
        assert set(inner.choose(given).tolist()) <= {7, 8, 9}


def test_scores_of_a_data_set_are_chosen_from() -> None:
    model, given = make("lora"), batch(12)
    norms = reference(model, given).norm(dim=1).numpy()
    halves = [{key: part[rows] for key, part in given.items()} for rows in (slice(6), slice(6, 12))]
    parts = [selection.score(model, half, needs={"norm", "proxy"}) for half in halves]
    whole = Scores.concatenate(parts)
    assert np.allclose(whole.norm, norms, rtol=1e-9)
    assert Selector("high", 0.25).choose(whole).tolist() == sorted(np.argsort(-norms)[:3])
    gram = selection.score(model, given, needs={"gram"}).gram
    rows = reference(model, given).numpy()
    assert np.allclose(gram, rows @ rows.T, rtol=1e-9, atol=1e-9)


def test_the_proxy_is_the_error_at_the_last_hidden_state() -> None:
    model, given = make("llama"), batch()
    found: list[torch.Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    output = model(**given)
    losses = []
    for logits, labels in zip(output.logits, given["labels"], strict=True):
        losses.append(nn.functional.cross_entropy(logits[:-1], labels[1:]))
    error = torch.autograd.grad(torch.stack(losses).sum(), found[0])[0]
    proxy = selection.score(model, given, needs={"proxy"}).proxy
    assert np.allclose(proxy, error.flatten(1).norm(dim=1).numpy(), rtol=1e-9)


def test_harm_is_what_the_optimizers_next_step_does() -> None:
    """⟨h, Δθ⟩ of an Adam step without momentum, against the step itself."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.01, betas=(0.0, 0.999999))
    for _ in range(3):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    direction, grad = torch.randn_like(parameter), 1e-3 * torch.randn_like(parameter)
    pull = apply_preconditioner([direction], [parameter], [optimizer])[0]
    before = parameter.detach().clone()
    parameter.grad = grad.clone()
    optimizer.step()
    moved = (direction * (parameter.detach() - before)).sum()
    # The state is that before the step: its own square is not in it yet, and the count is lower.
    assert torch.isclose((pull * grad).sum() * (4 / 3) ** 0.5, moved, rtol=1e-3)


def test_directions_have_the_shapes_of_what_is_trained() -> None:
    model = make("lora").train()
    wrong = [torch.zeros(3)] * len(trained(model))
    selector = Selector("risk", directions={"danger": wrong, "safety": wrong})
    with pytest.raises(ConfigError, match="'danger' is not of the shapes"):
        selector.begin(model, torch.optim.SGD(trained(model).values(), lr=0.1))


def test_results_print_in_one_short_line() -> None:
    model = training("lora")
    selector = Selector("moderate", 0.4)
    with selector.attach(model, sgd(model)):
        model(**batch()).loss.backward()
    assert repr(selector.history[0]) == "SelectionRecord(step 1: 2 of 5 rows by moderate)"
    assert repr(selector) == "Selector(moderate, ratio=0.4; 0 steps)"
    assert repr(selection.score(model, batch())) == "Scores(5 samples: loss, norm)"
