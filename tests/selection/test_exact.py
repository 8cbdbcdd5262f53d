"""Norms and inner products of per-sample gradients, against torch.func in float64."""

from __future__ import annotations

import pytest
import torch

from riprap import selection
from riprap.selection._scoring import compute_grad_samples
from selection.cases import CASES, batch, make, reference, trained


@pytest.mark.parametrize("name", CASES)
def test_norms_products_and_gradients_are_exact(name: str) -> None:
    model, given = make(name), batch()
    # Of a twin: torch.func.functional_call leaves a module that is used twice without a graph.
    expected = reference(make(name), given)
    assert expected.norm(dim=1).min() > 1e-3
    norms = selection.gradient_norms(model, given)
    assert torch.allclose(norms, expected.norm(dim=1), rtol=1e-10, atol=0)
    torch.manual_seed(1)
    directions = [[torch.randn_like(p) for p in trained(model).values()] for _ in range(2)]
    flat = torch.stack([torch.cat([part.flatten() for part in one]) for one in directions])
    products = selection.gradient_products(model, given, directions)
    scale = expected.norm(dim=1) * flat.norm(dim=1)[:, None]
    assert ((products - flat @ expected.T).abs() / scale).max() < 1e-10
    catch = compute_grad_samples(model, given, keep=True)[1]
    places = range(len(directions[0]))
    dense = torch.cat([catch.grad_samples(place).flatten(1) for place in places], 1)
    assert ((dense - expected).norm(dim=1) / expected.norm(dim=1)).max() < 1e-10
