"""Passes over probes that leave no trace on training.

Put back after each pass: `.training` of every module, `.grad` of every parameter, buffers that the
pass changed, and the random generators of torch (all devices in use), numpy and Python. Autocast is
off inside; evaluation mode also keeps gradient checkpointing from acting. Gradients are taken by
`torch.autograd.grad`, which accumulates nothing and fires no post-accumulate hook.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior, Margins
from riprap.behaviors.outputs import TokenBatch, device_of, last_logits, logits_of
from riprap.evidence import BehaviorError
from riprap.tensors import Vector


@dataclass
class Look:
    """What one pass over a behaviour's probes showed.

    Attributes:
        margins: shape (n_probes,), float64, on the CPU.
        insufficient: why the margins do not measure the behaviour; empty where they do.
        gradient: h_b = ∇ mean margin, one tensor per trainable parameter; None where it was not
            asked for or the margin is detached from the graph.
        activations: layer name -> residual stream at the last position, shape (rows, d), where a
            row is a probe, or a probe's option.
        logits: shape (rows, vocabulary) at the last position; None where the model's own output
            was not seen.
    """

    margins: np.ndarray
    insufficient: str = ""
    gradient: Vector | None = None
    activations: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the time being; afterwards everything is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone(), buffer._version)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for parameter, _ in grads:
            parameter.grad = None
        for module, _ in modes:
            module.training = False
        with _generators_kept(model), _autocast_off(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, grad in grads:
            parameter.grad = grad
        for module, name, buffer, kept, version in buffers:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(kept)
            module._buffers[name] = buffer


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


def _last_position(activation: Tensor) -> Tensor:
    return activation[:, -1] if activation.dim() == 3 else activation


@contextmanager
def _captured(
    model: nn.Module, layers: Sequence[str]
) -> Iterator[tuple[dict[str, list[Tensor]], list[Tensor]]]:
    """Collect what `layers` and the model itself put out while the context is open."""
    activations: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    outputs: list[Tensor] = []
    modules = dict(model.named_modules())

    def keep_layer(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor):
                activations[name].append(_last_position(tensor.detach()).float().clone())

        return hook

    def keep_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
        try:
            logits = logits_of(output)
        except BehaviorError:
            return  # a model of another kind: signals on logits say NOT_RUN
        outputs.append(_last_position(logits.detach()).float().clone())

    handles = [modules[name].register_forward_hook(keep_layer(name)) for name in layers]
    handles.append(model.register_forward_hook(keep_output))
    try:
        yield activations, outputs
    finally:
        for handle in handles:
            handle.remove()


def measure(behavior: Behavior, model: nn.Module) -> Margins:
    """The behaviour's margins as they stand, checked; attached to the graph if one is built.

    Raises:
        BehaviorError: the margins are not a tensor of shape (n_probes,) with a probe in it.
    """
    return checked(behavior, behavior.margins(model, behavior.probes))


def checked(behavior: Behavior, result: Tensor | Margins) -> Margins:
    """What a margin function returned, if it is of the right shape.

    Raises:
        BehaviorError: it is not a tensor of shape (n_probes,) with a probe in it.
    """
    margins = result if isinstance(result, Margins) else Margins(result)
    values = margins.values
    if not isinstance(values, Tensor) or values.dim() != 1 or len(values) == 0:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise BehaviorError(
            f"behaviour {behavior.name!r}: margins gave {shape}; "
            "expected a tensor of shape (n_probes,) with at least one probe"
        )
    return margins


def gradient_of(value: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False) -> Vector:
    """∇ value in `parameters`; zeros where it does not depend on one."""
    found = torch.autograd.grad(value, list(parameters), allow_unused=True, retain_graph=keep_graph)
    return [
        torch.zeros_like(parameter) if part is None else part.detach()
        for parameter, part in zip(parameters, found, strict=True)
    ]


def shared_passes(behaviors: Sequence[Behavior]) -> list[list[Behavior]]:
    """Behaviours that one pass can serve together: those read from the last position's logits."""
    together = [b for b in behaviors if hasattr(b.margins, "from_logits")]
    alone = [[b] for b in behaviors if not hasattr(b.margins, "from_logits")]
    return ([together] if together else []) + alone


def look_together(
    behaviors: Sequence[Behavior],
    model: nn.Module,
    parameters: Sequence[Tensor] | None = None,
    layers: Sequence[str] = (),
) -> dict[str, Look]:
    """One forward pass over the probes of several behaviours, and a backward pass for each.

    Args:
        behaviors: one, or one of the lists of `shared_passes`.
        parameters: take h_b in these; None: forward pass only.
        layers: names of modules whose output is kept, last position.

    Raises:
        BehaviorError: margins of a wrong shape.
    """
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(parameters is not None),
        no_trace(model),
        _captured(model, layers) as (activations, outputs),
    ):
        margins = _margins_together(behaviors, model)
        gradients = _gradients([m.values for m in margins], parameters)
    sizes = [len(b.probes) for b in behaviors] if len(behaviors) > 1 else None
    logits = _split(outputs, sizes)
    features = {name: _split(parts, sizes) for name, parts in activations.items() if parts}
    return {
        behavior.name: Look(
            margins=margins[i].values.detach().double().cpu().numpy(),
            insufficient=margins[i].insufficient,
            gradient=gradients[i],
            activations={name: parts[i] for name, parts in features.items()},
            logits=logits[i] if logits else None,
        )
        for i, behavior in enumerate(behaviors)
    }


def look(
    behavior: Behavior,
    model: nn.Module,
    parameters: Sequence[Tensor] | None = None,
    layers: Sequence[str] = (),
) -> Look:
    """One pass over one behaviour's probes; see `look_together`."""
    return look_together([behavior], model, parameters, layers)[behavior.name]


def _margins_together(behaviors: Sequence[Behavior], model: nn.Module) -> list[Margins]:
    if len(behaviors) == 1:
        return [measure(behaviors[0], model)]
    logits = last_logits(model, TokenBatch.join([b.probes for b in behaviors]))[:, -1]
    parts = logits.split([len(b.probes) for b in behaviors])
    return [
        checked(behavior, behavior.margins.from_logits(part))  # type: ignore[union-attr]
        for behavior, part in zip(behaviors, parts, strict=True)
    ]


def _gradients(margins: list[Tensor], parameters: Sequence[Tensor] | None) -> list[Vector | None]:
    if parameters is None:
        return [None] * len(margins)
    last = len(margins) - 1
    return [
        gradient_of(values.mean(), parameters, keep_graph=i < last)
        if values.requires_grad
        else None
        for i, values in enumerate(margins)
    ]


def _split(parts: list[Tensor], sizes: list[int] | None) -> list[Tensor]:
    if not parts:
        return []
    rows = torch.cat(parts)
    return [rows] if sizes is None else list(rows.split(sizes))


def loss_gradient(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor]
) -> Vector | None:
    """g_b = ∇ mean protected loss; None for a behaviour without losses."""
    if behavior.losses is None:
        return None
    with torch.inference_mode(False), torch.enable_grad(), no_trace(model):
        return gradient_of(behavior.losses(model, behavior.probes).mean(), parameters)


def fisher_diagonal(
    behavior: Behavior, model: nn.Module, parameters: Sequence[Tensor]
) -> Vector | None:
    """Diagonal empirical Fisher: mean over probes of the squared gradient of each one's loss.

    One backward pass a probe. None for a behaviour without losses.
    """
    if behavior.losses is None:
        return None
    with torch.inference_mode(False), torch.enable_grad(), no_trace(model):
        losses = behavior.losses(model, behavior.probes)
        total = [torch.zeros_like(parameter) for parameter in parameters]
        for loss in losses:
            single = gradient_of(loss, parameters, keep_graph=True)
            torch._foreach_addcmul_(total, single, single, value=1 / len(losses))
        return total


def start(behavior: Behavior, model: nn.Module) -> None:
    """Let a behaviour fix what it measures against the model as it is now."""
    if behavior.start is not None:
        with torch.inference_mode(False), torch.no_grad(), no_trace(model):
            behavior.start(model, behavior.probes)


def find_layer(model: nn.Module, name: str | None = None) -> str | None:
    """The module whose output is read as the residual stream.

    Args:
        name: a module's name as in `model.named_modules()`; a suffix that fits one module will do
            (so "layers.7" also finds the layer of a wrapped model). None: the middle block of the
            longest list of equal blocks, which is the stack of a transformer.

    Returns:
        the full name, or None where no name was given and no stack was found.

    Raises:
        BehaviorError: no module, or several, by that name.
    """
    modules = dict(model.named_modules())
    if name is not None:
        if name in modules:
            return name
        fitting = [full for full in modules if full.endswith("." + name)]
        if len(fitting) != 1:
            raise BehaviorError(
                f"layer {name!r} names {len(fitting)} modules of the model: give one name "
                "from model.named_modules()"
            )
        return fitting[0]
    stacks = [
        (len(module), full)
        for full, module in modules.items()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not stacks:
        return None
    length, full = max(stacks, key=lambda stack: stack[0])
    return f"{full}.{length // 2}"
