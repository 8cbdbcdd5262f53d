"""The observer leaves no trace: everything that a pass may touch is put back after it.

Put back are `.training` of every module; `.grad`, `requires_grad` and tensor hooks of every
parameter; buffers, whether the pass wrote them, replaced them or added some; and the random
generators of torch (all devices in use), numpy and Python. Autocast is off inside; evaluation mode
also keeps gradient checkpointing from acting.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from riprap._distributed import reshard
from riprap.behaviors import device_of


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time being; afterwards everything is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    with _parameters_kept(model), _buffers_kept(model):
        try:
            for module, _ in modes:
                module.training = False
            with _generators_kept(model), _autocast_off(model):
                yield
        finally:
            reshard(model)
            for module, training in modes:
                module.training = training


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    """No `.grad` and no tensor hooks inside: a user's hook is there for training's gradients."""
    kept = [(p, p.grad, p.requires_grad, p._backward_hooks) for p in model.parameters()]
    try:
        for parameter, _, _, hooks in kept:
            parameter.grad = None
            if hooks is not None:
                parameter._backward_hooks = None
        yield
    finally:
        for parameter, grad, required, hooks in kept:
            parameter.requires_grad_(required)
            parameter.grad = grad
            if hooks is not None:
                parameter._backward_hooks = hooks


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    kept = [(module, dict(module._buffers)) for module in model.modules()]
    contents = [
        (buffer, buffer.clone()) for _, own in kept for buffer in own.values() if buffer is not None
    ]
    try:
        yield
    finally:
        for module, own in kept:
            if _identities(module._buffers) != _identities(own):
                module._buffers.clear()
                module._buffers.update(own)
        with torch.no_grad():
            for buffer, content in contents:
                # Compared by value: writes through `.data` do not show in a tensor's version.
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


def _identities(buffers: Mapping[str, Tensor | None]) -> dict[str, int]:
    return {name: id(buffer) for name, buffer in buffers.items()}


def _devices(model: nn.Module) -> dict[str, list[int]]:
    """Accelerator indices by device type, for the devices that hold parameters."""
    found: dict[str, set[int]] = {}
    for parameter in model.parameters():
        device = parameter.device
        if device.type not in ("cpu", "meta"):
            found.setdefault(device.type, set()).add(device.index or 0)
    return {kind: sorted(indices) for kind, indices in found.items()}


@contextmanager
def _generators_kept(model: nn.Module) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        accelerators = _devices(model) or {"cpu": []}
        for kind, indices in accelerators.items():
            if kind == "cpu":
                stack.enter_context(torch.random.fork_rng(devices=[]))
            else:
                stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _autocast_off(model: nn.Module) -> Iterator[None]:
    with torch.autocast(device_type=device_of(model).type, enabled=False):
        yield
