"""PCGrad and UPGrad: against TorchJD's aggregation of the rows themselves."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from guards.test_gradient_surgery import conflict_of, operated, vectors
from riprap import guards
from riprap.errors import MissingExtraError
from riprap.guards.projection._gradient_surgery import ConflictStats
from riprap.guards.projection._torchjd_weightings import TorchJDWeighting

KINDS: dict[str, type[TorchJDWeighting]] = {"pcgrad": guards.PCGrad, "upgrad": guards.UPGrad}
kinds = pytest.mark.parametrize("kind", KINDS)


def theirs(kind: str, rows: Tensor) -> np.ndarray:
    from torchjd.aggregation import PCGrad, UPGrad
    from torchjd.linalg import QuadprogProjector

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the step of a `Conflict` made by hand
        if kind == "pcgrad":
            return np.asarray(PCGrad()(rows))
        return np.asarray(UPGrad(projector=QuadprogProjector(norm_eps=0.0, reg_eps=1e-10))(rows))


@kinds
@given(seed=st.integers(0, 10_000), n=st.integers(1, 4))
def test_it_is_torchjds_aggregation_of_the_rows(kind: str, seed: int, n: int) -> None:
    gradient, protected = vectors(seed, n)
    found = operated(KINDS[kind](of="loss", normalize=False), gradient, protected)
    expected = theirs(kind, torch.from_numpy(np.vstack([gradient, protected])))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@kinds
def test_scaled_every_row_is_as_long_as_the_step(kind: str) -> None:
    gradient, protected = vectors(4, 3)
    long = protected * np.array([[1e-3], [1.0], [1e3]])
    size = np.linalg.norm(gradient)
    alike = protected / np.linalg.norm(protected, axis=1, keepdims=True) * size
    expected = theirs(kind, torch.from_numpy(np.vstack([gradient, alike])))
    expected *= min(size / np.linalg.norm(expected), 1.0)  # at most as long as the step
    found = operated(KINDS[kind](), gradient, long)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_upgrad_leaves_no_conflict(seed: int, n: int) -> None:
    gradient, protected = vectors(seed, n)
    left = operated(guards.UPGrad(), gradient, protected)
    assert (protected @ left >= -1e-5).all()
    assert gradient @ left >= -1e-5


def test_pcgrad_by_hand() -> None:
    """Of two vectors there is one order only."""
    gradient, protected = np.array([-1.0, 1.0]), np.array([[1.0, 0.0]])
    # g loses (−1, 0); p loses ⟨p, g⟩/‖g‖² g = −½ g.
    expected = np.array([0.0, 1.0]) + np.array([1.0, 0.0]) + 0.5 * gradient
    found = operated(guards.PCGrad(of="loss", normalize=False), gradient, protected)
    np.testing.assert_allclose(found, expected)


def test_pcgrads_order_follows_the_step_and_draws_from_no_generator() -> None:
    gradient, protected = vectors(9, 5)
    before = torch.get_rng_state()
    plain = conflict_of(gradient - protected.sum(0), protected)
    conflicts = [
        ConflictStats(plain.products, plain.gram, plain.squared_norm, step) for step in range(6)
    ]
    found = [guards.PCGrad().decide(conflict)[1] for conflict in conflicts]
    again = [guards.PCGrad().decide(conflict)[1] for conflict in conflicts]
    assert torch.equal(before, torch.get_rng_state())
    assert all(map(np.array_equal, found, again))
    assert len({tuple(weights) for weights in found}) > 1


@kinds
def test_a_behavior_without_a_gradient_does_no_harm(kind: str) -> None:
    gradient, protected = np.array([-1.0, 1.0, 0.0]), np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    found = operated(KINDS[kind](), gradient, protected)
    assert np.isfinite(found).all()
    assert found @ protected[0] >= 0


@pytest.mark.parametrize("kind", [guards.PCGrad, guards.UPGrad])
def test_without_torchjd_the_error_names_the_extra(
    kind: type[TorchJDWeighting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'riprap\[torchjd\]'"):
        kind()
