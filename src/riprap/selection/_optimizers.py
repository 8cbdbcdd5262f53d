"""Optimizers that row selection supports, and hooks that a copy of the model does not get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from riprap._distributed import find_deepspeed, unwrap_optimizer
from riprap.errors import ConfigError


class LiveHook:
    """A hook of a running attachment; in a copy or a pickle of its module it does nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self._function(*args)

    def __reduce__(self) -> Any:
        """Return a function of the standard library that takes anything and does nothing."""
        return getattr, (nullcontext(), "__exit__")


def require_optimizers(optimizer: Any) -> list[Optimizer]:
    """Return the torch optimizers inside wrappers such as Accelerate's; refuse others.

    Args:
        optimizer: an optimizer, or several that step one after another.
    """
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    if not optimizers:
        raise ConfigError("row selection needs an optimizer, and the list of optimizers is empty")
    return [_require_optimizer(one) for one in optimizers]


def _require_optimizer(optimizer: Any) -> Optimizer:
    if find_deepspeed(optimizer) is not None:
        raise ConfigError(
            "row selection does not support DeepSpeed, whose engine steps a copy of the "
            "parameters within backward(): train with DDP"
        )
    optimizer = unwrap_optimizer(optimizer)
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"row selection does not support a {name} as optimizer: give the "
            "torch.optim.Optimizer whose step() trains the model"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "row selection does not support LBFGS, which evaluates the loss several times in one "
            "step, each time on other selected rows: use an optimizer with one evaluation a step"
        )
    if name.lower().startswith(("layerwise", "lomo", "adalomo")):
        raise ConfigError(f"row selection does not support {name}, {_STEPS_IN_BACKWARD}")
    return optimizer


_STEPS_IN_BACKWARD = (
    "which steps inside backward(), before the rows are selected: use an optimizer whose step() "
    "follows backward()"
)


def refuse_steps_in_backward(parameters: Mapping[str, Tensor]) -> None:
    """Refuse parameters with hooks on their accumulated gradient, as layer-wise optimizers add."""
    for name, parameter in parameters.items():
        if parameter._post_accumulate_grad_hooks:
            raise ConfigError(
                f"{name} has a post-accumulate-gradient hook (a layer-wise optimizer, or a second "
                f"selector), {_STEPS_IN_BACKWARD}"
            )
