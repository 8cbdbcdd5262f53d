"""Dual quadratic program of GEM: satisfy several inner-product constraints at once."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

RIDGES = (0.0, 1e-9, 1e-6)  # relative, tried in turn until the solution survives rounding
BOUND_TOLERANCE = 1e-6  # share of the largest bound by which a solution may miss its bound
MAX_WEIGHT = 1e6  # larger weights cancel each other, beyond the accuracy of single precision


def solve_dual(gram: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Return the weights v ≥ 0 of the shortest x = Σ v_b p_b with ⟨p_a, x⟩ ≥ bound_a for every a.

    With gram = ⟨p_a, p_b⟩ they solve the dual problem min_v ½ vᵀ gram v − boundᵀ v, v ≥ 0, as a
    least-distance problem by non-negative least squares (Lawson and Hanson, Solving Least Squares
    Problems, 1974, chapter 23), which also works for a singular Gramian. A p_b of length 0 gets 0.
    """
    weights = np.zeros(len(bound))
    lengths = np.sqrt(np.clip(np.diag(gram), 0, None))
    nonzero = lengths > 0
    own = lengths[nonzero]
    if not (bound[nonzero] > 0).any():
        return weights
    cosines = gram[np.ix_(nonzero, nonzero)] / np.outer(own, own)
    scaled_bound = bound[nonzero] / own
    unit = np.abs(scaled_bound).max()
    weights[nonzero] = unit * _solve_normalized(cosines, scaled_bound / unit) / own
    return weights


def _solve_normalized(cosines: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Solve the problem for vectors of length 1 and bounds of at most 1."""
    weights = np.zeros(len(bound))
    for ridge in RIDGES:
        matrix = cosines + ridge * np.eye(len(bound))
        weights = _solve_least_distance(matrix, bound)
        if (matrix @ weights >= bound - BOUND_TOLERANCE).all() and weights.max() <= MAX_WEIGHT:
            break
    return weights


def _solve_least_distance(matrix: np.ndarray, bound: np.ndarray) -> np.ndarray:
    values, axes = np.linalg.eigh((matrix + matrix.T) / 2)
    values = np.where(values > 1e-14 * values[-1], values, 0.0)
    coordinates = np.sqrt(values)[:, None] * axes.T  # one column a protected vector
    raw, _ = nnls(np.vstack([coordinates, bound]), np.eye(len(bound) + 1)[-1])
    residual = 1.0 - bound @ raw
    weights: np.ndarray = raw / residual if residual > 0 else np.full(len(bound), np.inf)
    return weights
