"""The Gauss–Newton matrix against a dense one, entry by entry, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from riprap import Behavior
from riprap.behaviors._margin_fns import Choice, Continuations
from riprap.behaviors._margin_formulas import token_margin
from riprap.behaviors._model_io import TokenBatch, logits_of
from riprap.diagnosis.geometry._curvature import curvature
from riprap.errors import BehaviorError, ConfigError
from tiny import PlainLM, make_llama

IDS = torch.randint(3, 47, (5, 6), generator=torch.Generator().manual_seed(3))
TARGETS = torch.tensor([9, 11, 30, 12, 5])


def exact() -> Behavior:
    """Float64 throughout; the constructors read logits in float32."""
    return Behavior(
        "exact", IDS, lambda model, ids: token_margin(logits_of(model(ids))[:, -1], TARGETS)
    )


def dense(model: nn.Module, rows: list[tuple[list[int], int, float]]) -> np.ndarray:
    """Σ weight · Jᵀ (diag p − p pᵀ) J, a backward pass an entry of the logits.

    Args:
        rows: token ids, how many tokens of them are read before the answer, and the weight.
    """
    factors: list[np.ndarray] = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for ids, length, weight in rows:
        logits = logits_of(model(torch.tensor([ids])))[0, length - 1]
        jacobian = np.stack(
            [
                np.concatenate(
                    [
                        (torch.zeros_like(p) if g is None else g).double().numpy().ravel()
                        for p, g in zip(
                            parameters,
                            torch.autograd.grad(
                                z, parameters, retain_graph=True, allow_unused=True
                            ),
                            strict=True,
                        )
                    ]
                )
                for z in logits
            ]
        )
        p = np.exp(logits.detach().double().numpy())
        p /= p.sum()
        # Its Gramian has the eigenvalues of the whole matrix, which is 5000 wide.
        factor = np.sqrt(weight) * (np.diag(np.sqrt(p)) - np.outer(np.sqrt(p), p)) @ jacobian
        factors.append(factor)
    stacked = np.concatenate(factors)
    return stacked @ stacked.T


def spectrum(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(matrix)[::-1]


def small(scale: float = 3.0, **options: Any) -> nn.Module:
    return make_llama(scale=scale, **options).eval()


def test_eigenvalues_and_trace_are_those_of_the_whole_matrix() -> None:
    torch.manual_seed(0)
    model = PlainLM().double()
    with torch.no_grad():
        model.head.weight.mul_(5.0)
    expected = spectrum(dense(model, [(row.tolist(), 6, 1 / 5) for row in IDS]))
    found = curvature(model, exact(), top=16, samples=100, seed=1)
    close = np.array(found.errors) <= 1e-6 * expected[0]
    assert close[:6].all()
    np.testing.assert_allclose(np.array(found.eigenvalues)[close], expected[:16][close], rtol=1e-9)
    assert abs(found.trace - expected.sum()) < 4 * found.trace_error + 1e-9
    assert found.trace_error < 0.01 * found.trace
    assert found.top_share == pytest.approx(expected[0] / expected.sum(), rel=0.02)
    assert found.probes == 5


def test_a_transformer_is_no_exception() -> None:
    model = small().double()  # whose norms are taken in float32
    expected = spectrum(dense(model, [(row.tolist(), 6, 1 / 5) for row in IDS]))
    found = curvature(model, exact(), top=6, samples=50)
    assert found.eigenvalues[0] == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(found.eigenvalues, expected[:6], rtol=1e-2)
    assert (
        np.abs(np.array(found.eigenvalues) - expected[:6]) < np.array(found.errors) + 1e-5
    ).all()
    assert abs(found.trace - expected.sum()) < 4 * found.trace_error
    assert 0 < found.trace_error < 0.05 * found.trace
    assert found.top_share_error == pytest.approx(found.top_share * found.trace_error / found.trace)


def test_it_is_the_fisher_matrix_of_what_the_model_says() -> None:
    """Another road to the trace: E ‖∇ log p(y)‖² over all answers y, with no Jacobian in it."""
    model = PlainLM().double()
    parameters = list(model.parameters())
    total = 0.0
    for row in IDS:
        logs = model(row[None])[0, -1].log_softmax(-1)
        for log in logs:
            grads = torch.autograd.grad(log, parameters, retain_graph=True)
            total += float(log.detach().exp()) * sum(float(g.square().sum()) for g in grads)
    found = curvature(model, exact(), top=8, samples=100)
    assert abs(found.trace - total / 5) < 4 * found.trace_error


def test_options_count_by_token_and_probe() -> None:
    model = small()
    batch = [[3, 4, 9, 10], [3, 4, 12], [3, 4, 20, 6, 10, 8, 13, 30], [3, 4, 20, 6, 10, 8, 14]]
    prompts, tails = [2, 2, 6, 6], [2, 1, 2, 1]
    wanted = torch.tensor([[True, False], [True, False]])
    probes = Continuations(
        TokenBatch.pad(batch),
        TokenBatch.pad([row[-k:] for row, k in zip(batch, tails, strict=True)]).input_ids,
        torch.tensor([[1, 1], [0, 1], [1, 1], [0, 1]]),
        wanted,
    )
    rows = [
        (batch[at], prompts[at] + token, 1 / (2 * tails[at]))
        for at in (0, 2)
        for token in range(tails[at])
    ]
    expected = spectrum(dense(model, rows))
    found = curvature(model, Behavior("choice", probes, Choice()), top=4, samples=50)
    np.testing.assert_allclose(found.eigenvalues, expected[:4], rtol=1e-2)
    assert found.eigenvalues[0] == pytest.approx(expected[0], rel=1e-4)
    assert abs(found.trace - expected.sum()) < 4 * found.trace_error + 1e-4 * expected.sum()


def test_a_model_that_is_sure_of_itself_keeps_its_digits() -> None:
    """p of the answer is 1 − 1e-6, so diag p − p pᵀ is a difference of numbers near 1."""
    model, sure = small(), small().double()
    sure.load_state_dict(model.state_dict())
    for one in (model, sure):
        with torch.no_grad():
            one.lm_head.weight.mul_(25.0)
    behavior = Behavior.next_token("words", IDS, TARGETS)
    with torch.no_grad():
        assert float(1 - sure(IDS).logits[:, -1].softmax(-1).amax(-1).max()) < 1e-4
    expected = spectrum(dense(sure, [(row.tolist(), 6, 1 / 5) for row in IDS]))
    found = curvature(model, behavior, top=2, samples=4)
    np.testing.assert_allclose(found.eigenvalues[0], expected[0], rtol=5e-3)


def test_given_parameters_alone_count_and_no_more_probes_than_asked_for() -> None:
    model = small()
    whole = curvature(model, Behavior.next_token("words", IDS, TARGETS), samples=2)
    head = [model.lm_head.weight]
    part = curvature(model, Behavior.next_token("words", IDS, TARGETS), samples=2, parameters=head)
    assert 0 < part.trace < whole.trace
    few = curvature(model, Behavior.next_token("words", IDS, TARGETS), samples=2, probes=2)
    own = Behavior.next_token("words", IDS[[0, 4]], TARGETS[[0, 4]])
    assert few.probes == 2
    assert few.eigenvalues == curvature(model, own, samples=2).eigenvalues


def test_it_leaves_no_trace_and_says_how_far_it_is() -> None:
    model = make_llama().train()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator, calls = torch.get_rng_state(), []
    behavior = Behavior.next_token("words", IDS, TARGETS)
    curvature(model, behavior, top=2, samples=3, progress=lambda d, n: calls.append((d, n)))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert model.training
    assert float(model.lm_head.weight.grad.mean()) == 1.0
    assert model.model.embed_tokens.weight.grad is None
    assert torch.equal(torch.get_rng_state(), generator)
    assert calls == sorted(calls)
    assert calls[-1] == (11, 11)


@pytest.mark.parametrize("counts", [{"top": 0}, {"probes": 0}, {"samples": 1}])
def test_counts_that_are_too_small(counts: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="samples >= 2"):
        curvature(small(), exact(), **counts)


def test_answers_that_depend_on_nothing() -> None:
    model = small().requires_grad_(False)
    with pytest.raises(BehaviorError, match="do not depend on the parameters"):
        curvature(model, exact())
