"""CKA against U-centred inner products in float64, and what it must and must not see."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from journeys import Journey
from riprap import Behavior, ReadingStatus
from riprap.signals import CKA
from riprap.signals.features._cka import debiased_cka, unbiased_hsic
from tiny import make_llama
from views import probe_view, values


def u_centred(gramian: np.ndarray) -> np.ndarray:
    """Székely and Rizzo's U-centring, whose inner product is HSIC₁."""
    n = len(gramian)
    k = gramian - np.diag(np.diag(gramian))
    centered = k - (k.sum(0) + k.sum(1)[:, None]) / (n - 2) + k.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centered, 0)
    return centered


def reference(now: np.ndarray, then: np.ndarray) -> float:
    one, two = u_centred(now @ now.T), u_centred(then @ then.T)
    return float((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))


@pytest.mark.parametrize("n", [4, 5, 20])
def test_it_agrees_with_u_centred_gramians(n: int) -> None:
    then = torch.randn(n, 7)
    now = then @ torch.randn(7, 5) + 0.5 * torch.randn(n, 5)
    found = debiased_cka(now, then)
    assert found == pytest.approx(reference(now.double().numpy(), then.double().numpy()), rel=1e-6)


def test_hsic_is_the_mean_over_all_quadruples() -> None:
    """The U-statistic by its definition: every ordered choice of four different rows."""
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
    terms = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(6), 4)
    ]
    assert float(unbiased_hsic(x @ x.T, y @ y.T)) == pytest.approx(np.mean(terms), rel=1e-9)


def test_rotation_shift_and_scale_are_not_seen() -> None:
    then = torch.randn(12, 8)
    turned = 3 * then @ torch.linalg.qr(torch.randn(8, 8))[0] + 100
    assert debiased_cka(turned, then) == pytest.approx(1, abs=1e-4)


def test_unrelated_activations_read_nothing_even_with_fewer_rows_than_directions() -> None:
    """The biased estimator would read about 0.9 here."""
    found = [debiased_cka(torch.randn(8, 64), torch.randn(8, 64)) for _ in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))


def test_rows_that_are_all_alike_have_no_relations_to_keep() -> None:
    assert np.isnan(debiased_cka(torch.ones(6, 3), torch.randn(6, 3)))


def test_the_signal_compares_with_the_start() -> None:
    journey = Journey(CKA())
    first, later = values(journey.first, "cka"), values(journey.later, "cka")
    assert first == {"lone": pytest.approx(1), "refusal": pytest.approx(1)}
    for name in ("lone", "refusal"):
        expected = reference(journey.now[name], journey.then[name])
        assert later[name] == pytest.approx(expected, rel=1e-3)
        assert later[name] < 0.99


def test_three_rows_are_too_few() -> None:
    journey = Journey(CKA())
    stated = [(r.behavior, r.state) for r in journey.first if r.value is None]
    assert stated == [("over", ReadingStatus.INSUFFICIENT)]
    assert not [r for r in journey.later if r.value is None]


def test_probes_that_change_shape_are_not_run() -> None:
    model, signal = make_llama().eval(), CKA()
    ids = torch.randint(3, 40, (6, 5))
    signal.start(probe_view(0, [Behavior.next_token("words", ids, ids[:, 0])], model))
    fewer = [Behavior.next_token("words", ids[:5], ids[:5, 0])]
    assert [r.state for r in signal.on_probe_evaluation(probe_view(3, fewer, model))] == [
        ReadingStatus.NOT_RUN
    ]
