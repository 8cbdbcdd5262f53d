"""GEM: the problem of the paper, and its relation to the projection on the dual cone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from guards.test_gradient_surgery import operated, vectors
from riprap import guards
from riprap.errors import ConfigError


def written_out(
    gradient: np.ndarray, protected: np.ndarray, strength: float, ridge: float
) -> np.ndarray:
    """min ½ vᵀ(GGᵀ + ridge)v + (Gg)ᵀv, v ≥ strength; then g + Gᵀv."""
    quadratic = protected @ protected.T + ridge * np.eye(len(protected))
    linear = protected @ gradient
    found = minimize(
        lambda v: 0.5 * v @ quadratic @ v + linear @ v,
        np.full(len(linear), strength + 0.1),
        jac=lambda v: quadratic @ v + linear,
        bounds=[(strength, None)] * len(linear),
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 2000},
    )
    return np.asarray(gradient + found.x @ protected)


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([(0.5, 1e-3), (0.0, 0.3)]))
def test_the_problem_of_the_paper(seed: int, n: int, options: tuple[float, float]) -> None:
    gradient, protected = vectors(seed, n)
    guard = guards.GEM(strength=options[0], ridge=options[1], of="loss", normalize=False)
    expected = written_out(gradient, protected, *options)
    np.testing.assert_allclose(operated(guard, gradient, protected), expected, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_scaled_it_is_the_same_problem_in_units_of_the_step(seed: int, n: int) -> None:
    gradient, protected = vectors(seed, n)
    size = np.linalg.norm(gradient)
    alike = protected / np.linalg.norm(protected, axis=1, keepdims=True) * size
    for strength in (0.0, 0.5):
        expected = written_out(gradient, alike, strength, 1e-3 * size**2)
        expected *= min(size / np.linalg.norm(expected), 1.0)  # at most as long as the step
        for unit in (1.0, 1e4):
            found = operated(guards.GEM(strength=strength), gradient, unit * protected)
            np.testing.assert_allclose(found, expected, atol=1e-4)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_without_strength_it_is_torchjds_projection_of_g(seed: int, n: int) -> None:
    """DualProj takes the rows' weighted mean to the cone that all rows span. With all weight on g
    the row g adds nothing to the cone: a projection never goes against what it is of."""
    from torchjd.aggregation import DualProj
    from torchjd.linalg import QuadprogProjector

    gradient, protected = vectors(seed, n)
    rows = torch.from_numpy(np.vstack([gradient, protected]))
    weight = torch.zeros(n + 1, dtype=torch.float64)
    weight[0] = 1.0
    theirs = DualProj(weight, projector=QuadprogProjector(norm_eps=0.0, reg_eps=1e-10))(rows)
    for scaled in (True, False):
        ours = guards.GEM(strength=0.0, ridge=0.0, normalize=scaled)
        np.testing.assert_allclose(operated(ours, gradient, protected), theirs, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_without_strength_no_conflict_remains_and_the_norm_does_not_grow(seed: int, n: int) -> None:
    gradient, protected = vectors(seed, n)
    left = operated(guards.GEM(strength=0.0, ridge=0.0), gradient, protected)
    assert (protected @ left >= -1e-6).all()
    assert left @ left <= gradient @ gradient * (1 + 1e-9)


def test_what_the_ridge_leaves_and_the_strength_adds() -> None:
    gradient, protected = np.array([-1.0, 1.0]), np.array([[1.0, 0.0]])
    ridged = operated(
        guards.GEM(strength=0.0, ridge=0.25, of="loss", normalize=False), gradient, protected
    )
    assert ridged @ protected[0] == pytest.approx(-0.25 / 1.25)
    strong = operated(
        guards.GEM(strength=3.0, ridge=0.0, of="loss", normalize=False), gradient, protected
    )
    assert strong.tolist() == pytest.approx([2.0, 1.0])


def test_invalid_arguments_are_refused() -> None:
    for options in ({"strength": -0.1}, {"ridge": -1.0}, {"strength": float("nan")}):
        with pytest.raises(ConfigError, match="both must be 0 or more"):
            guards.GEM(**options)
