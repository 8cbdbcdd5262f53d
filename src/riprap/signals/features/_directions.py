"""Directions and subspaces of activations: small-array functions of the feature signals."""

from __future__ import annotations

import torch
from torch import Tensor

N_DIRECTIONS = 8  # principal directions per behavior


def unit_difference(here: Tensor, there: Tensor) -> Tensor:
    """Compute the unit difference of means of two activation sets (2406.11717).

    Args:
        here, there: shapes (n, d), (m, d).

    Returns:
        shape (d,); zeros where the means coincide.
    """
    return torch.nn.functional.normalize(here.mean(0) - there.mean(0), dim=0)


def principal_directions(activations: Tensor, k: int = N_DIRECTIONS) -> Tensor:
    """Compute the top-k principal directions, not centered, as orthonormal columns.

    The mean is not subtracted: it contains what the behavior's inputs have in common.

    Args:
        activations: shape (n, d).

    Returns:
        shape (d, min(k, rank bound)).
    """
    _, _, right = torch.linalg.svd(activations, full_matrices=False)
    return right[: min(k, *activations.shape)].T


def energy_ratio(activations: Tensor, basis: Tensor) -> Tensor:
    """Compute ‖Π_U a‖² / ‖a‖² over all rows together; between 0 and 1.

    Args:
        activations: shape (n, d).
        basis: U, shape (d, k), orthonormal columns.
    """
    return (activations @ basis).square().sum() / activations.square().sum()


def subspace_overlap(left: Tensor, right: Tensor) -> Tensor:
    """Compute the mean squared cosine of the principal angles of two subspaces; chance k / d.

    Args:
        left, right: shapes (d, k), orthonormal columns.
    """
    return (left.T @ right).square().sum() / min(left.shape[1], right.shape[1])


def cosine_distance(now: Tensor, then: Tensor) -> Tensor:
    """Compute 1 − cos(now, then) of two vectors of shape (d,)."""
    return 1 - torch.nn.functional.cosine_similarity(now, then, dim=0)
