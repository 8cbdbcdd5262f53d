"""Weight damage: what the change of the weights shows, on changes that were made on purpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from experiments.loss_classification.damage import rounded
from riprap.diagnosis.evidence import weight_damage
from riprap.diagnosis.evidence._weight_damage import is_unstructured, tracy_widom_tail

SIDES = (64, 96)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIDES[0], SIDES[1]), nn.ReLU(), nn.Linear(SIDES[1], SIDES[0]))


def train(model: nn.Module, steps: int = 20) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs, wanted = (torch.randn(48, SIDES[0], generator=generator) for _ in range(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        (model(inputs) - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def change(model: nn.Module, by: Callable[[Tensor], Tensor]) -> None:
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(by(weight))


def noisy(weight: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return weight + 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)


def scaled_noise(weight: Tensor) -> Tensor:
    """Noise in proportion to each weight, and to its column."""
    generator = torch.Generator().manual_seed(5)
    columns = torch.linspace(0.1, 2.0, weight.shape[1])
    return weight * (1 + 0.1 * columns * torch.randn(weight.shape, generator=generator))


def pruned(weight: Tensor) -> Tensor:
    return weight.where(weight.abs() > weight.abs().median(), 0.0)


def fourth_bits(weight: Tensor) -> Tensor:
    return rounded(weight, 4)


DAMAGES = [
    (noisy, "noise"),
    (scaled_noise, "noise"),
    (lambda weight: rounded(weight, 8), "noise"),  # too fine a grid to be seen in blocks of 32
    (pruned, "pruning"),
    (fourth_bits, "quantization"),
    (lambda weight: fourth_bits(weight) * 1.0000001, "quantization"),
]


@pytest.mark.parametrize(("by", "kind"), DAMAGES)
def test_damage_is_named_and_explains_the_whole_change(
    by: Callable[[Tensor], Tensor], kind: str
) -> None:
    base, model = layers(), layers()
    change(model, by)
    found = weight_damage(model, base)
    assert (found.text, found.is_whole) == (kind, True)
    assert weight_damage(model, dict(base.named_parameters())) == found


@pytest.mark.parametrize("steps", [1, 20, 200])
def test_training_is_not_taken_for_damage(steps: int) -> None:
    base, model = layers(), layers()
    train(model, steps)
    found = weight_damage(model, base)
    assert (found.text, found.is_whole) == ("", False)


@pytest.mark.parametrize(("by", "kind"), [(pruned, "pruning"), (fourth_bits, "quantization")])
def test_damage_after_training_explains_a_part(by: Callable[[Tensor], Tensor], kind: str) -> None:
    base, model = layers(), layers()
    train(model)
    change(model, by)
    found = weight_damage(model, base)
    assert (found.text, found.is_whole) == (kind, False)


def test_rounded_matrices_are_named_beside_trained_ones() -> None:
    """As with an embedding, which most formats leave as it is."""
    base, model = layers(), layers()
    train(model)
    with torch.no_grad():
        model[2].weight.copy_(fourth_bits(model[2].weight))
    found = weight_damage(model, base)
    assert (found.text, found.is_whole) == ("quantization", False)


def test_a_trained_vector_is_seen_beside_rounded_matrices() -> None:
    base, model = layers(), layers()
    change(model, fourth_bits)
    with torch.no_grad():
        model[0].bias.add_(0.1)
    assert not weight_damage(model, base).is_whole


def with_vectors(kernels: bool) -> nn.Sequential:
    inner = layers()
    torch.manual_seed(1)
    norm = nn.LayerNorm(SIDES[0])
    with torch.no_grad():
        norm.weight.add_(0.2 * torch.randn(SIDES[0]))
    if not kernels:
        return nn.Sequential(*inner, norm)
    kernel = nn.Conv1d(SIDES[0], SIDES[0], 1)
    return nn.Sequential(*inner, norm, nn.Unflatten(-1, (SIDES[0], 1)), kernel, nn.Flatten(-2))


@pytest.mark.parametrize("kernels", [False, True])
def test_other_tensors_that_trained_are_seen_beside_rounded_matrices(kernels: bool) -> None:
    base, model = with_vectors(kernels), with_vectors(kernels)
    for weight in model.parameters():
        weight.requires_grad = weight.dim() != 2
    train(model)
    for weight in model.parameters():
        weight.requires_grad = True
    found = weight_damage(model.bfloat16(), base)
    assert (found.kinds, found.is_whole) == ((), False)


def everywhere(model: nn.Module, by: Callable[[Tensor], Tensor]) -> nn.Module:
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(by(weight))
    return model


@pytest.mark.parametrize(
    "by",
    [
        lambda weight: weight.bfloat16().float(),
        lambda weight: weight + 0.01 * torch.randn(weight.shape),
        lambda weight: weight * (1 + 0.1 * torch.randn(weight.shape)),
    ],
)
def test_noise_in_all_tensors_explains_the_whole_change(by: Callable[[Tensor], Tensor]) -> None:
    base, model = with_vectors(True), with_vectors(True)
    found = weight_damage(everywhere(model, by), base)
    assert (found.text, found.is_whole) == ("noise", True)


def test_one_trained_matrix_among_noisy_ones_is_seen() -> None:
    base, model = layers(), layers()
    change(model, noisy)
    with torch.no_grad():
        model[2].weight.copy_(base[2].weight + torch.outer(torch.ones(64), torch.ones(96)) * 1e-3)
    assert not weight_damage(model, base).is_whole


def test_nothing_is_said_of_unchanged_or_of_other_weights() -> None:
    assert not weight_damage(layers(), layers()).is_whole
    other = nn.Sequential(nn.Linear(4, 4))
    assert not weight_damage(other, layers()).is_whole
    small_before, small = nn.Linear(8, 8), nn.Linear(8, 8)  # too small for a test
    assert not weight_damage(small, small_before).is_whole


def test_a_half_precision_model_is_compared() -> None:
    base, model = layers(), layers()
    change(model, pruned)
    found = weight_damage(model.double(), base.double())
    assert found.text == "pruning"
    train(model := layers())
    assert not weight_damage(model.bfloat16(), base.float()).is_whole


def test_noise_is_rarely_taken_for_structure() -> None:
    generator = torch.Generator().manual_seed(0)
    laws = (torch.randn, torch.rand)
    found = [
        is_unstructured(law(32, 64, generator=generator) - (law is torch.rand) * 0.5, 1e-3)
        for law in laws
        for _ in range(100)
    ]
    assert sum(found) >= 198


def test_the_tail_is_that_of_tracy_and_widom() -> None:
    """Quantiles 0.95, 0.99 and 0.999 of the first law (Bejan, 2005)."""
    for value, tail in ((0.979, 0.05), (2.023, 0.01), (3.272, 0.001)):
        assert tracy_widom_tail(value) == pytest.approx(tail, rel=0.35) or value < 1
    assert tracy_widom_tail(-3.0) == 1.0
