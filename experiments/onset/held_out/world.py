"""World: a small model, what it was pretrained on, and the behaviors that it then has."""

from __future__ import annotations

import hashlib
import inspect
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

OLD = "old"
FEWEST = 20


@dataclass(frozen=True)
class Behavior:
    """Probes of one behavior.

    Attributes:
        inputs: what the model reads, shape (n_probes, ...).
        right: what passes: a mask of right outputs, or a number; shape (n_probes, ...).
        groups: number of each probe's group, shape (n_probes,).
    """

    inputs: Tensor
    right: Tensor
    groups: np.ndarray

    def keep(self, rows: Tensor) -> Behavior:
        """Return the behavior with some of its probes."""
        return Behavior(self.inputs[rows], self.right[rows], self.groups[rows.numpy()])


class World(ABC):
    """A model with its data.

    Attributes:
        name: of the world.
        near: tasks that resemble the old one.
        far: tasks that pull the model elsewhere.
        sizes: largest number of probes of each behavior.
        batch_size: rows of a batch.
        pretraining: steps, and the largest rate of AdamW, which follows one cycle.
    """

    name: str
    near: tuple[str, ...]
    far: tuple[str, ...]
    sizes: dict[str, int]
    batch_size: int
    pretraining: tuple[int, float]

    @abstractmethod
    def new_model(self) -> nn.Module:
        """Return an untrained model."""

    @abstractmethod
    def batch(self, task: str, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw inputs and targets of a task (`OLD`, or one of `near` and `far`)."""

    @abstractmethod
    def candidates(self) -> dict[str, Behavior]:
        """Return probes of each behavior, in random order, whether they pass or not."""

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss of a batch."""
        return cross_entropy(model(inputs), targets)

    def margins(self, model: nn.Module, probes: Behavior) -> Tensor:
        """Return the best right logit minus the best wrong one, shape (n_probes,)."""
        return gap(model(probes.inputs), probes.right)


def gap(logits: Tensor, right: Tensor) -> Tensor:
    """Return the largest logit in the mask `right` minus the largest outside of it."""
    low = torch.finfo(logits.dtype).min
    return logits.masked_fill(~right, low).amax(-1) - logits.masked_fill(right, low).amax(-1)


def pretrained(world: World, folder: Path) -> nn.Module:
    """Return the pretrained model of a world, from `folder` if it is there, else trained now.

    The file's name holds a hash of the world's source, so a changed world is trained anew.
    """
    source = inspect.getsource(sys.modules[type(world).__module__])
    path = folder / f"{world.name}-{hashlib.sha256(source.encode()).hexdigest()[:12]}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = world.new_model()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    pretrain(world, model)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, unfinished)
    unfinished.replace(path)
    return model


def pretrain(world: World, model: nn.Module) -> None:
    """Train a model on the old task of its world."""
    steps, rate = world.pretraining
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    rng = np.random.default_rng(7)
    for _ in range(steps):
        loss = world.loss(model, *world.batch(OLD, world.batch_size, rng))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def known(world: World, model: nn.Module) -> dict[str, Behavior]:
    """Return the behaviors of a pretrained model: probes that pass, at most `sizes` of each.

    Raises:
        ValueError: fewer than 20 probes of a behavior pass.
    """
    behaviors = {}
    for name, probes in world.candidates().items():
        with torch.no_grad():
            passing = torch.nonzero(world.margins(model, probes) > 0).flatten()
        if len(passing) < FEWEST:
            raise ValueError(
                f"{len(passing)} of {len(probes.groups)} probes of {name!r} in world "
                f"{world.name!r} pass; {FEWEST} are needed: pretrain longer"
            )
        behaviors[name] = probes.keep(passing[: world.sizes[name]])
    return behaviors
