"""Models that differ from a reference, and the state that an examination must leave unchanged."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from riprap.toy._world import ToyWorld
from tiny import make_llama

WORLD = ToyWorld()


@cache
def _trained(steps: int) -> nn.Module:
    model = WORLD.start(1000)
    optimizer = WORLD.optimizer(model)
    data = WORLD.batches("C", 1000)
    for _ in range(steps):
        WORLD.loss(model, next(data)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def start() -> nn.Module:
    """The toy world's aligned model."""
    return copy.deepcopy(_trained(0))


def eroded() -> nn.Module:
    """The same after some steps of another task."""
    return copy.deepcopy(_trained(40))


def adapted(seed: int = 3, **options: Any) -> Any:
    """A tiny Llama under a LoRA that has learned something."""
    model = get_peft_model(make_llama(), LoraConfig(r=3, target_modules="all-linear", **options))
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if "lora_B" in name:
                part.copy_(torch.randn(part.shape, generator=made) * 0.1)
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters."""
    return {name: part.detach().clone() for name, part in model.named_parameters()}


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Weights to the bit, gradients, modes, hooks and random generators are as before."""
    model.train()
    for part in model.parameters():
        part.grad = torch.ones_like(part)
    before = _all_of(model)
    yield
    after = _all_of(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert same, key


def _all_of(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    found["numpy"] = str(np.random.get_state())
    for name, part in model.named_parameters():
        found[name] = part.detach().clone()
        found[f"{name}.grad"] = None if part.grad is None else part.grad.clone()
        found[f"{name}.needs"] = part.requires_grad
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        found[f"{name}()"] = (module.training, hooks)
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            found[f"{name} scale"] = (dict(scaling), module.disable_adapters)
    return found
