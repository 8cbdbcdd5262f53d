"""Largest eigenvalues of a symmetric operator that is given by its products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RANGE_TOLERANCE = 1e-10  # of the largest eigenvalue; a smaller remainder is rounding error


@dataclass(frozen=True)
class RitzValues:
    """Result of `lanczos`."""

    values: NDArray[np.float64]  # approximate eigenvalues in falling order
    errors: NDArray[np.float64]  # bound on the distance from each to the nearest eigenvalue
    basis: Tensor  # shape (steps, size), orthonormal rows
    trace: float  # of the operator within the span of the basis


def lanczos(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    top: int,
    max_products: int,
    tolerance: float,
) -> RitzValues:
    """Compute the `top` largest eigenvalues by Lanczos, with full reorthogonalization twice a step.

    A multiple eigenvalue is found once. If the range of the operator is exhausted, there are fewer
    than `top`.

    Args:
        product: A x for x of shape (size,).
        start: shape (size,), with a component in every eigenvector, such as Gaussian noise.
        max_products: largest number of products.
        tolerance: stop when all `top` errors are below this share of the largest eigenvalue.

    Source: Golub and Van Loan, Matrix Computations, section 10.1 and theorem 10.1.2 (the errors).
    """
    max_products = min(max_products, len(start))
    basis = start.new_empty(max_products, len(start))
    diagonal, off = np.zeros(max_products), np.zeros(max_products)
    row = start / start.norm()
    for step in range(max_products):
        basis[step] = row
        rest = product(row)
        diagonal[step] = float(rest @ row)
        previous = basis[: step + 1]
        for _ in range(2):
            rest = rest - (previous @ rest) @ previous
        off[step] = float(rest.norm())
        tridiagonal = np.diag(diagonal[: step + 1])
        tridiagonal += np.diag(off[:step], 1) + np.diag(off[:step], -1)
        values, vectors = np.linalg.eigh(tridiagonal)
        errors = np.abs(off[step] * vectors[-1, ::-1])[:top]
        largest = abs(values[-1])
        has_converged = step + 1 >= top and bool((errors <= tolerance * largest).all())
        if has_converged or off[step] <= RANGE_TOLERANCE * largest:
            break
        row = rest / off[step]
    count = step + 1
    trace = float(diagonal[:count].sum())
    return RitzValues(values[::-1][:top].copy(), errors, basis[:count], trace)
