"""Lanczos against a dense eigendecomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from riprap.diagnosis.geometry._lanczos import lanczos


def symmetric(values: list[float]) -> Tensor:
    size = len(values)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T


def start(size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64)


def test_the_largest_eigenvalues_and_how_well_they_are_known() -> None:
    spectrum = [1.5**-k for k in range(60)]
    matrix = symmetric(spectrum)
    found = lanczos(lambda x: matrix @ x, start(60), top=5, max_products=20, tolerance=1e-10)
    np.testing.assert_allclose(found.values, spectrum[:5], rtol=1e-8)
    early = lanczos(lambda x: matrix @ x, start(60), top=5, max_products=6, tolerance=1e-10)
    gaps = np.abs(early.values[:, None] - np.array(spectrum)).min(1)
    assert (gaps <= early.errors + 1e-12).all()
    assert early.errors.max() > 1e-4


def test_it_stops_once_all_are_known_well_enough() -> None:
    matrix = symmetric([8.0, 4.0, 2.0, *[0.01] * 77])
    found = lanczos(lambda x: matrix @ x, start(80), top=3, max_products=70, tolerance=1e-6)
    assert len(found.basis) <= 5
    np.testing.assert_allclose(found.values, [8.0, 4.0, 2.0], rtol=1e-6)


def test_the_basis_stays_orthonormal_where_plain_lanczos_loses_it() -> None:
    matrix = symmetric([1e6, *np.linspace(1, 2, 99).tolist()])
    found = lanczos(lambda x: matrix @ x, start(100), top=8, max_products=60, tolerance=0.0)
    gram = found.basis @ found.basis.T
    torch.testing.assert_close(gram, torch.eye(60).double(), atol=1e-12, rtol=0)
    assert found.trace == pytest.approx(
        float(torch.trace(found.basis @ matrix @ found.basis.T)), rel=1e-9
    )


def test_a_range_that_is_exhausted_ends_it() -> None:
    matrix = symmetric([3.0, 1.0, *[0.0] * 30])
    found = lanczos(lambda x: matrix @ x, start(32), top=6, max_products=30, tolerance=1e-9)
    assert len(found.basis) == 3
    np.testing.assert_allclose(found.values, [3.0, 1.0, 0.0], atol=1e-9)
    assert found.trace == pytest.approx(4.0)
