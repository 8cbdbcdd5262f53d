"""Isolation: a pass over probes leaves training exactly as it was.

Restored are `.training` of every module; `.grad`, `requires_grad` and tensor hooks of every
parameter; buffers, whether the pass wrote, replaced or added them; and the random number
generators of torch (on all devices in use), numpy and Python. Autocast is off inside. Evaluation
mode also disables gradient checkpointing.
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
def preserve_training_state(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and restore everything listed above afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    with _preserve_params(model), _preserve_buffers(model):
        try:
            for module, _ in modes:
                module.training = False
            with _preserve_rng(model), torch.autocast(device_of(model).type, enabled=False):
                yield
        finally:
            reshard(model)
            for module, training in modes:
                module.training = training


@contextmanager
def _preserve_params(model: nn.Module) -> Iterator[None]:
    """Remove `.grad` and tensor hooks inside: a user's hook is meant for training's gradients."""
    saved = [(p, p.grad, p.requires_grad, p._backward_hooks) for p in model.parameters()]
    try:
        for parameter, _, _, hooks in saved:
            parameter.grad = None
            if hooks is not None:
                parameter._backward_hooks = None
        yield
    finally:
        for parameter, grad, required, hooks in saved:
            parameter.requires_grad_(required)
            parameter.grad = grad
            if hooks is not None:
                parameter._backward_hooks = hooks


@contextmanager
def _preserve_buffers(model: nn.Module) -> Iterator[None]:
    saved = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [buffer for _, own in saved for buffer in own.values() if buffer is not None]
    contents = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        for module, own in saved:
            if _identities(module._buffers) != _identities(own):
                module._buffers.clear()
                module._buffers.update(own)
        with torch.no_grad():
            for buffer, content in contents:
                # Compared by value: writes through `.data` do not change a tensor's version.
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


def _identities(buffers: Mapping[str, Tensor | None]) -> dict[str, int]:
    return {name: id(buffer) for name, buffer in buffers.items()}


def _devices(model: nn.Module) -> dict[str, list[int]]:
    """Return the accelerator indices of all parameters, by device type."""
    indices: dict[str, set[int]] = {}
    for parameter in model.parameters():
        device = parameter.device
        if device.type not in ("cpu", "meta"):
            indices.setdefault(device.type, set()).add(device.index or 0)
    return {kind: sorted(own) for kind, own in indices.items()}


@contextmanager
def _preserve_rng(model: nn.Module) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        accelerators = _devices(model) or {"cuda": []}  # no devices: the CPU's generator only
        for kind, indices in accelerators.items():
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
