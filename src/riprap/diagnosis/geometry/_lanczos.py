"""The largest eigenvalues of a symmetric operator that is only known by its products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RANGE_TOLERANCE = 1e-10  # of the largest eigenvalue; a smaller remainder is rounding error


@dataclass(frozen=True)
class RitzValues:
    """What Lanczos found.

    Attributes:
        values: approximate eigenvalues in falling order.
        errors: for each, how far the nearest eigenvalue may be.
        basis: shape (steps, size), orthonormal rows.
        trace: of the operator within the span of the basis.
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    basis: Tensor
    trace: float


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, top: int, max_products: int, tolerance: float
) -> RitzValues:
    """The `top` largest eigenvalues, by Lanczos with full reorthogonalisation, done twice a step.

    An eigenvalue that occurs several times is found once. Where the operator's range is exhausted
    there are fewer than `top`.

    Args:
        product: A x for x of shape (size,).
        start: shape (size,), anything with a part in every eigenvector, such as Gaussian noise.
        most: products at most.
        tolerance: stop once all `top` errors are below this share of the largest eigenvalue.

    Source: Golub and Van Loan, Matrix Computations, section 10.1 and theorem 10.1.2 (the errors).
    """
    max_products = min(max_products, len(start))
    basis = start.new_empty(max_products, len(start))
    diagonal, off = np.zeros(max_products), np.zeros(max_products)
    row = start / start.norm()
    for step in range(max_products):
        basis[step] = row
        found = product(row)
        diagonal[step] = float(found @ row)
        known = basis[: step + 1]
        for _ in range(2):
            found = found - (known @ found) @ known
        off[step] = float(found.norm())
        tridiagonal = np.diag(diagonal[: step + 1])
        tridiagonal += np.diag(off[:step], 1) + np.diag(off[:step], -1)
        values, vectors = np.linalg.eigh(tridiagonal)
        errors = np.abs(off[step] * vectors[-1, ::-1])[:top]
        largest = abs(values[-1])
        settled = step + 1 >= top and bool((errors <= tolerance * largest).all())
        if settled or off[step] <= RANGE_TOLERANCE * largest:
            break
        row = found / off[step]
    count = step + 1
    trace = float(diagonal[:count].sum())
    return RitzValues(values[::-1][:top].copy(), errors, basis[:count], trace)
