"""A multilayer perceptron that reads handwritten digits (scikit-learn's 8 × 8 images)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from experiments.onset.unlike.base import Draw, Rows, World

SIDE, LABELS = 8, 10
Change = Callable[[Tensor, torch.Generator], Tensor]  # of images, shape (n, SIDE, SIDE)


def build() -> nn.Module:
    """Return the untrained model; it reads pixels, shape (n, 64)."""
    return nn.Sequential(
        nn.Linear(SIDE**2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, LABELS),
    )  # fmt: skip


_stored = load_digits()
IMAGES = torch.tensor(_stored.images, dtype=torch.float32) / 16
DIGITS = torch.tensor(_stored.target)
HELD_OUT = torch.rand(len(IMAGES), generator=torch.Generator().manual_seed(0)) < 0.5


def as_they_are(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images."""
    return images


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise to each pixel."""
    return images + 0.25 * torch.randn(images.shape, generator=generator)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by a pixel to the left or to the right."""
    left = torch.rand(len(images), 1, 1, generator=generator) < 0.5
    return torch.where(left, images.roll(-1, 2), images.roll(1, 2))


def permuted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Put the pixels into another order, the same for all."""
    order = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(3))
    return images.flatten(1)[:, order].view_as(images)


def task(digits: range, held_out: bool = False, change: Change = as_they_are, add: int = 0) -> Draw:
    """Return the task of naming digits.

    Args:
        digits: which digits; they are the groups.
        held_out: use the images that no task is trained on.
        change: what is done to the images.
        add: what is added to the right label, modulo 8.
    """
    chosen = torch.isin(DIGITS, torch.tensor(digits)) & (HELD_OUT if held_out else ~HELD_OUT)
    images, labels = IMAGES[chosen], DIGITS[chosen]

    def draw(generator: torch.Generator, n: int) -> Rows:
        places = torch.randperm(len(images), generator=generator)[:n]
        inputs = change(images[places], generator).flatten(1)
        targets = (labels[places] + add) % 8 if add else labels[places]
        return Rows(inputs, targets, labels[places])

    return draw


KNOWN = range(8)


def _behaviors(held_out: bool) -> dict[str, Draw]:
    return {
        "low": task(range(4), held_out),
        "high": task(range(4, 8), held_out),
        "negative": task(KNOWN, held_out, lambda images, _: 1 - images),
        "mirrored": task(KNOWN, held_out, lambda images, _: images.flip(2)),
    }


WORLD = World(
    name="digits",
    build=build,
    behaviors=_behaviors(held_out=False),
    probes=_behaviors(held_out=True),
    related={
        "noisy": task(KNOWN, change=noisy),
        "shifted": task(KNOWN, change=shifted),
        "low_again": task(range(4)),
    },
    new={
        "permuted": task(KNOWN, change=permuted),
        "rotated": task(KNOWN, change=lambda images, _: images.rot90(1, (1, 2))),
        "eight_and_nine": task(range(8, 10)),
        "next_label": task(KNOWN, add=1),
    },
    n_probes={"low": 40, "high": 40, "negative": 60, "mirrored": 24},
    pretraining=(1500, 96, 3e-3),
    rates={"sgd": 3e-3, "adamw": 5e-4, "adafactor": 2e-3, "muon": 3e-3},
    batch=32,
)
