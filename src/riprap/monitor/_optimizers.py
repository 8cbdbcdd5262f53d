"""The optimizers of a watch: unwrapped, checked, and the parameters that they train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from riprap._distributed import MAX_WRAPPERS
from riprap.errors import ConfigError

# Their step() does nothing: the weights change inside backward().
_LAYER_WISE = ("LayerWiseDummyOptimizer", "Lomo", "AdaLomo", "OptimizerInBackwardWrapper")


def require_optimizers(given: Any) -> list[torch.optim.Optimizer]:
    """Return the optimizers inside wrappers such as Accelerate's.

    Args:
        given: an optimizer, or a list or tuple of optimizers.

    Raises:
        ConfigError: one is not a `torch.optim.Optimizer`, or steps in backward(); or two of
            them train the same parameter.
    """
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise ConfigError("nothing to watch: the list of optimizers is empty")
    optimizers = [_require_optimizer(one) for one in several]
    owners: dict[int, int] = {}
    for index, optimizer in enumerate(optimizers):
        for parameter in parameters_of(optimizer):
            if owners.setdefault(id(parameter), index) != index:
                raise ConfigError(
                    "cannot watch optimizers that share parameters: give each optimizer once, and "
                    "each parameter to one of them"
                )
    return optimizers


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return all parameters that an optimizer holds, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def learning_rate(optimizers: Sequence[torch.optim.Optimizer]) -> float | Tensor:
    """Return the largest learning rate of all parameter groups; NaN if an optimizer has none.

    A rate that is a tensor on an accelerator stays there: to read it would make the step wait.
    """
    rates: list[float | Tensor] = []
    for group in (group for one in optimizers for group in one.param_groups):
        rate = group.get("lr")
        if not isinstance(rate, int | float | Tensor):
            return math.nan
        rates.append(rate)
    on_device = [rate for rate in rates if isinstance(rate, Tensor) and rate.device.type != "cpu"]
    others = [float(rate) for rate in rates if not any(rate is one for one in on_device)]
    if not on_device:
        return max(others, default=math.nan)
    place = on_device[0].device
    largest = torch.stack([rate.detach().to(place) for rate in on_device]).max()
    return largest.clamp(min=max(others)) if others else largest


def _require_optimizer(given: Any) -> torch.optim.Optimizer:
    _refuse_layer_wise(given)
    optimizer = _inner_optimizer(given)
    if isinstance(given, nn.Module):
        raise ConfigError(
            f"cannot watch a {type(given).__name__} as an optimizer: give the model first, then "
            "the optimizer, as in monitor.watch(model, optimizer)"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"cannot watch a {type(optimizer).__name__}: give the torch.optim.Optimizer whose "
            "step() trains the model"
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise ConfigError(
            f"cannot watch a {type(optimizer).__name__}: it never called "
            "torch.optim.Optimizer.__init__, so it has no hooks; give the optimizer inside it"
        )
    return optimizer


def _inner_optimizer(given: Any) -> Any:
    """Return the optimizer that steps: the one inside Accelerate's wrapper, SAM, Lookahead, …"""
    for _ in range(MAX_WRAPPERS):
        inner = next(
            (
                part
                for name in ("optimizer", "base_optimizer")
                if isinstance(part := getattr(given, name, None), torch.optim.Optimizer)
            ),
            None,
        )
        if inner is None and isinstance(given, torch.optim.Optimizer):
            if hasattr(given, "_optimizer_step_pre_hooks"):
                return given
            # A subclass that never called `Optimizer.__init__` has no hooks of its own.
            held = [p for p in vars(given).values() if isinstance(p, torch.optim.Optimizer)]
            inner = held[0] if len(held) == 1 else None
        if inner is None:
            return given
        given = inner
    return given


def _refuse_layer_wise(given: Any) -> None:
    for _ in range(MAX_WRAPPERS):
        if any(kind.__name__ in _LAYER_WISE for kind in type(given).__mro__):
            raise ConfigError(
                f"cannot watch a {type(given).__name__}: it changes the weights inside backward(), "
                "where no hook is called; use an optimizer that changes them in step() (such as "
                "optim='galore_adamw' in place of 'galore_adamw_layerwise')"
            )
        given = getattr(given, "optimizer", None)


def trained_parameters(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], modules: Sequence[str] = ()
) -> list[Tensor]:
    """Return the model's parameters that the optimizers train, in the optimizers' order.

    Args:
        modules: names of modules, to return only their parameters. Empty: all.

    Raises:
        ConfigError: there are none, or one is complex or without shape.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"cannot watch a {type(model).__name__}: give the torch.nn.Module that is trained, as "
            "in monitor.watch(model, optimizer)"
        )
    ids_in_model = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if not modules or any(name == part or name.startswith(f"{part}.") for part in modules)
    }
    trained = [
        parameter
        for optimizer in optimizers
        for parameter in parameters_of(optimizer)
        if parameter.requires_grad and id(parameter) in ids_in_model
    ]
    if not trained and modules:
        raise ConfigError(
            f"nothing to watch in modules {', '.join(modules)}: they hold no trained parameter; "
            "give names from model.named_modules()"
        )
    if not trained:
        raise ConfigError(
            "nothing to watch: the optimizer holds no trainable parameter of this model "
            "(is the model frozen, or does the optimizer belong to another model?)"
        )
    _refuse_kinds(model, trained)
    return trained


def _refuse_kinds(model: nn.Module, trained: Sequence[Tensor]) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in trained:
        name = names[id(parameter)]
        if is_lazy(parameter):
            raise ConfigError(
                f"cannot watch the parameter {name!r}: it has no shape yet; run the model once "
                "before watching it"
            )
        if parameter.is_complex():
            raise ConfigError(
                f"cannot watch the parameter {name!r}: it contains complex numbers; freeze it, "
                "store real and imaginary parts as real numbers, or name other modules, "
                "Monitor(..., modules=[...])"
            )


def stale_optimizer(model: nn.Module, optimizers: Sequence[Any]) -> str:
    """Return what is wrong if parts of the model were replaced after the optimizers were made.

    Then the optimizers hold tensors that are no longer in the model, and the model has trainable
    tensors that no optimizer holds. Empty where only one of the two is true: some losses have
    parameters of their own, and some parts are trained elsewhere.
    """
    torch_optimizers = [one for one in optimizers if isinstance(one, torch.optim.Optimizer)]
    held = {id(p): p for one in torch_optimizers for p in parameters_of(one) if p.requires_grad}
    own = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    foreign = [key for key in held if key not in own]
    left_out = [name for key, name in own.items() if key not in held]
    if not foreign or not left_out:
        return ""
    return (
        f"{len(foreign)} tensors of the optimizer are not in the model, and {len(left_out)} "
        f"trainable tensors of the model are in no optimizer ({', '.join(left_out[:3])}"
        f"{', …' if len(left_out) > 3 else ''}): these will not move; make the optimizer after the "
        "last change of the model"
    )
