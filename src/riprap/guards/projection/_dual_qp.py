"""Staying on the right side of several protected gradients at once: a small quadratic problem."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

RIDGES = (0.0, 1e-9, 1e-6)  # of the squared lengths, tried in turn where rounding leaves no way
BOUND_TOLERANCE = 1e-6  # of the largest bound, by which a solution may miss it
MAX_WEIGHT = 1e6  # weights above this cancel each other, which single precision cannot follow


def solve_dual(gram: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Weights v ≥ 0 of the shortest x = Σ v_b p_b with ⟨p_a, x⟩ ≥ bound_a for every a.

    These solve min_v ½ vᵀ gram v − boundᵀ v, v ≥ 0, the dual of that problem. Solved as a problem
    of least distance by non-negative least squares (Lawson and Hanson, Solving Least Squares
    Problems, 1974, chapter 23), which a singular Gramian does not disturb.

    Args:
        gram: ⟨p_a, p_b⟩, shape (n, n).
        bound: shape (n,).

    Returns:
        v, shape (n,), float64; 0 for a p_b of length 0, which nothing can move along.
    """
    found = np.zeros(len(bound))
    lengths = np.sqrt(np.clip(np.diag(gram), 0, None))
    moving = lengths > 0
    own = lengths[moving]
    if not (bound[moving] > 0).any():
        return found
    cosines = gram[np.ix_(moving, moving)] / np.outer(own, own)
    least = bound[moving] / own
    unit = np.abs(least).max()
    found[moving] = unit * _solve_normalized(cosines, least / unit) / own
    return found


def _solve_normalized(cosines: np.ndarray, least: np.ndarray) -> np.ndarray:
    """`dual` for vectors of length 1 and bounds of at most 1."""
    weights = np.zeros(len(least))
    for ridge in RIDGES:
        matrix = cosines + ridge * np.eye(len(least))
        weights = _solve_least_distance(matrix, least)
        met = bool((matrix @ weights >= least - BOUND_TOLERANCE).all())
        if met and weights.max() <= MAX_WEIGHT:
            break
    return weights


def _solve_least_distance(matrix: np.ndarray, least: np.ndarray) -> np.ndarray:
    values, axes = np.linalg.eigh((matrix + matrix.T) / 2)
    values = np.where(values > 1e-14 * values[-1], values, 0.0)
    coordinates = np.sqrt(values)[:, None] * axes.T  # one column a protected vector
    target = np.zeros(len(least) + 1)
    target[-1] = 1.0
    raw, _ = nnls(np.vstack([coordinates, least]), target)
    left = 1.0 - least @ raw
    weights: np.ndarray = raw / left if left > 0 else np.full(len(least), np.inf)
    return weights
