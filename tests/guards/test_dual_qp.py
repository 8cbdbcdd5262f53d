"""The dual problem on small Gramians, against a general solver of the primal problem."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from riprap.guards.projection._dual_qp import solve_dual


def shortest(protected: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """x itself: min ½‖x‖² with protected @ x ≥ bound, by sequential quadratic programming."""
    found = minimize(
        lambda x: 0.5 * x @ x,
        np.linalg.lstsq(protected, np.maximum(bound, 0), rcond=None)[0],
        jac=lambda x: x,
        constraints={
            "type": "ineq",
            "fun": lambda x: protected @ x - bound,
            "jac": lambda x: protected,
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    return np.asarray(found.x)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_it_is_the_shortest_way(seed: int, n: int) -> None:
    made = np.random.default_rng(seed)
    protected, bound = made.normal(size=(n, 9)), made.normal(size=n)
    weights = solve_dual(protected @ protected.T, bound)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights @ protected, shortest(protected, bound), atol=1e-5)


def test_lengths_of_any_size() -> None:
    made = np.random.default_rng(1)
    protected, gradient = made.normal(size=(4, 9)), made.normal(size=9)
    sizes = np.array([1e-6, 1.0, 1e3, 1e6])
    plain = solve_dual(protected @ protected.T, -protected @ gradient)
    wide = sizes[:, None] * protected
    assert plain.any()
    np.testing.assert_allclose(
        solve_dual(wide @ wide.T, -wide @ gradient) * sizes, plain, rtol=1e-6
    )


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_singular_gramians(factor: float) -> None:
    """The same behavior twice, two that are opposed, one without a gradient."""
    made = np.random.default_rng(2)
    one, gradient = made.normal(size=9), made.normal(size=9)
    one *= -np.sign(one @ gradient)
    protected = np.stack([one, factor * one])
    weights = solve_dual(protected @ protected.T, -protected @ gradient)
    left = gradient + weights @ protected
    np.testing.assert_allclose(protected @ left, np.zeros(2), atol=1e-6)
    np.testing.assert_allclose(left, gradient - gradient @ one / (one @ one) * one, atol=1e-6)


def test_bounds_that_rounding_made_contradictory_give_finite_weights() -> None:
    gram = np.array([[1.0, -1.0], [-1.0, 1.0]])
    weights = solve_dual(gram, np.array([0.5, -0.5 + 1e-7]))
    assert np.isfinite(weights).all()
    assert gram[0] @ weights >= 0.5 - 1e-4


def test_nothing_is_done_where_nothing_is_asked() -> None:
    assert not solve_dual(np.eye(3), np.array([-1.0, 0.0, -2.0])).any()
