"""Isolation: a pass over probes leaves training exactly as it was.

Restored are `.training` and the attributes of every module; `.grad`, `requires_grad`, tensor hooks
and storage of every parameter; buffers, whether the pass wrote, resized, replaced or added them;
and the random number generators of torch (on all devices in use), numpy and Python. Evaluation mode
also disables gradient checkpointing. Compiled modules run eagerly: a pass compiles nothing.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

from riprap._distributed import reshard
from riprap._warnings import warn
from riprap.errors import BehaviorError, ConfigError
from riprap.evaluation._module_state import ModelState
from riprap.evaluation._precision import Autocast, Precision, adopt_autocast, in_pass

Result = TypeVar("Result")
MAX_ATTEMPTS = 3  # a pass is repeated after it taught something about the model

# Modules that repack their parameters in evaluation mode. Another format has no gradient, or its
# inverse rounds; in training mode they compute the same.
_KEPT_IN_TRAINING: WeakSet[nn.Module] = WeakSet()
_REPACKING_KINDS = (("bitsandbytes.nn.modules", "Linear4bit"),)


class ProbePass:
    """Findings of a pass about a model, after which the pass must be repeated.

    Attributes:
        found_output_layer: the pass found the layer that it should have computed in float32.
        moved: modules that had given a parameter another storage, until it was put back.
    """

    def __init__(self) -> None:
        self.found_output_layer = False
        self.moved: list[nn.Module] = []


def set_evaluation_mode(model: nn.Module) -> None:
    """Put all modules in evaluation mode, except those that it would change for good.

    Such modules, bitsandbytes' `Linear4bit` among them, stay in training mode, where they compute
    the same. Use it instead of `model.eval()`.
    """
    for module in model.modules():
        module.training = stays_in_training(module)


def refuse_packed(model: nn.Module) -> None:
    """Refuse a model that an evaluation pass has already made unable to train.

    Raises:
        ConfigError: a 4-bit weight is packed for inference on a CPU, which has no gradient.
    """
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ConfigError(
                f"the model cannot be trained: an evaluation pass before the monitor has packed "
                f"the 4-bit weight {name!r} for inference, so it passes no gradient on; load the "
                "model again, and use riprap.evaluation.set_evaluation_mode(model) in place of "
                "model.eval()"
            )


def stays_in_training(module: nn.Module) -> bool:
    """Return whether a module repacks its parameters in evaluation mode."""
    if module in _KEPT_IN_TRAINING:
        return True
    kind: Any = type(module)
    return _repacks(kind)


@functools.cache
def _repacks(kind: type) -> bool:
    names = {(base.__module__, base.__name__) for base in kind.__mro__}
    return not names.isdisjoint(_REPACKING_KINDS)


@contextmanager
def preserve_training_state(
    model: nn.Module, autocast: Autocast | None = None, float32_logits: bool = True
) -> Iterator[ProbePass]:
    """Put the model in evaluation mode, and restore everything listed above afterwards.

    Args:
        autocast: None: training's own autocast state; False: off; a dtype: on, with this dtype.
        float32_logits: compute the output layer in float32.

    Raises:
        BehaviorError: a part of the model could not be put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    found = ProbePass()
    failures: list[str] = []
    with _preserve_params(model):
        state = ModelState(model)
        try:
            set_evaluation_mode(model)
            precision = Precision(model, autocast, float32_logits)
            with preserve_rng(model), _eager(), in_pass(), precision.applied():
                yield found
            found.found_output_layer = precision.learned
        finally:
            reshard(model)
            for module, training in modes:
                module.training = training
            found.moved, failures = state.restore()
    if failures:
        raise BehaviorError(
            f"a pass over probes changed {'; '.join(failures)}, which could not be put back"
        )


def _keep_in_training(model: nn.Module, moved: list[nn.Module]) -> bool:
    """Leave modules in training mode from now on; return whether any was not yet."""
    new = {module for module in moved if not stays_in_training(module)}
    if not new:
        return False
    name = next(name for name, module in model.named_modules() if module in new)
    _KEPT_IN_TRAINING.update(new)
    warn(
        f"{name or 'the model'} ({type(model.get_submodule(name)).__name__}) replaces its "
        "parameters in evaluation mode; they were put back, and it stays in training mode while "
        "probes are evaluated",
    )
    return True


def repeat_if_learned(
    model: nn.Module,
    run: Callable[[], Result],
    autocast: Autocast | None = None,
    agree: Callable[[Result, Result], bool] | None = None,
) -> Result:
    """Run a pass inside `preserve_training_state`; repeat it if it taught something.

    Args:
        run: the pass; it may run several times.
        agree: compares the results of two passes of which the second leaves modules in training
            mode.

    Raises:
        BehaviorError: a module computes something else in training mode, but cannot return from
            evaluation mode; or the model does not run in the precision of the pass.
    """
    in_evaluation_mode: list[Result] = []  # of modules that stay in training mode since then
    for _ in range(MAX_ATTEMPTS):
        try:
            with preserve_training_state(model, autocast) as found:
                result = run()
        except RuntimeError as error:
            if not adopt_autocast(model, autocast, error):
                raise
            continue
        if _keep_in_training(model, found.moved):
            in_evaluation_mode.append(result)
        elif not found.found_output_layer:
            break
    if in_evaluation_mode and agree is not None and not agree(in_evaluation_mode[0], result):
        raise BehaviorError(
            "a module replaces its parameters in evaluation mode and computes something else in "
            "training mode, so the probes cannot be evaluated: let its forward leave its "
            "parameters as they are"
        )
    return result


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled functions eagerly: a pass of other shapes would recompile training's graphs."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


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


def _devices(model: nn.Module) -> dict[str, list[int]]:
    """Return the accelerator indices of all parameters, by device type."""
    indices: dict[str, set[int]] = {}
    for parameter in model.parameters():
        device = parameter.device
        if device.type not in ("cpu", "meta"):
            indices.setdefault(device.type, set()).add(device.index or 0)
    return {kind: sorted(own) for kind, own in indices.items()}


@contextmanager
def preserve_rng(model: nn.Module) -> Iterator[None]:
    """Restore the generators of Python, numpy and torch, on the model's devices too."""
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        accelerators: dict[str, Any] = _devices(model) or {"cuda": []}  # none: only the CPU's
        for kind, indices in accelerators.items():
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
