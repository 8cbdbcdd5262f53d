"""Directions: their products with a gradient are the scores, written out another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from riprap.prediction._directions import by_module, harm_direction, sqsd_direction

SHAPES = {
    "layer.q.lora_A.default.weight": (2, 5),
    "layer.q.lora_B.default.weight": (4, 2),
    "layer.norm.weight": (5,),
    "layer.v.lora_A.default.weight": (3, 5),
    "layer.v.lora_B.default.weight": (6, 3),
}


def draw(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def product(one: list[Tensor], two: dict[str, Tensor]) -> float:
    return sum(float((a * b).sum()) for a, b in zip(one, two.values(), strict=True))


def test_sqsd_is_the_update_of_each_layer_on_two_unit_vectors() -> None:
    """Weight changes of whole layers, as the paper projects them."""
    weights, row, danger, safety = draw(0), draw(1), draw(2), draw(3)
    expected = 0.0
    for layer in ("layer.q", "layer.v"):
        a, b = (weights[f"{layer}.lora_{m}.default.weight"] for m in "AB")

        def change(
            step: dict[str, Tensor], layer: str = layer, a: Tensor = a, b: Tensor = b
        ) -> Tensor:
            parts = (step[f"{layer}.lora_{m}.default.weight"] for m in "AB")
            in_a, in_b = parts
            return in_b @ a + b @ in_a

        update = -change(row)  # one step of plain descent at rate 1
        for sign, direction in ((1, change(danger)), (-1, change(safety))):
            expected += sign * float((update * direction).sum() / direction.norm())
    norm = "layer.norm.weight"
    for sign, direction in ((1, danger[norm]), (-1, safety[norm])):
        expected += sign * float((-row[norm] * direction).sum() / direction.norm())
    found = sqsd_direction(weights, list(danger.values()), list(safety.values()))
    assert product(found, row) == pytest.approx(expected, rel=1e-9)


def test_each_module_counts_with_its_gradient_at_length_one() -> None:
    row, gradient, scales = draw(1), draw(2), {n: p.abs() for n, p in draw(3).items()}
    modules = [("layer.q", 0, 2), ("layer.norm", 2, 3), ("layer.v", 3, 5)]
    names = list(SHAPES)
    expected = 0.0
    for _, start, stop in modules:
        own = names[start:stop]
        length = sum(float((gradient[n] ** 2).sum()) for n in own) ** 0.5
        expected += sum(float((gradient[n] * scales[n] * row[n]).sum()) for n in own) / length
    harm = harm_direction(list(gradient.values()), list(scales.values()))
    assert product(by_module(harm, list(gradient.values()), names), row) == pytest.approx(expected)


def test_a_module_without_a_gradient_counts_nothing() -> None:
    gradient = draw(2)
    gradient["layer.norm.weight"].zero_()
    harm = harm_direction(list(gradient.values()), list(draw(3).values()))
    found = by_module(harm, list(gradient.values()), list(SHAPES))
    assert all(part.isfinite().all() for part in found) and not found[2].any()
