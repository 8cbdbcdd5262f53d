"""Hooks around an optimizer's step: the task gradient before it, the applied update after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from riprap.evidence import ConfigError
from riprap.tensors import Vector, clone, copy_into, subtract


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside wrappers such as Accelerate's.

    Raises:
        ConfigError: it is not a `torch.optim.Optimizer`.
    """
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"cannot watch a {type(optimizer).__name__}: give the torch.optim.Optimizer whose "
            "step() trains the model"
        )
    return optimizer


def trained_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The model's parameters that the optimizer changes, in the optimizer's order.

    Raises:
        ConfigError: there are none.
    """
    own = {id(parameter) for parameter in model.parameters()}
    found = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and id(parameter) in own
    ]
    if not found:
        raise ConfigError(
            "nothing to watch: the optimizer holds no trainable parameter of this model "
            "(is it frozen, or was the optimizer made for another one?)"
        )
    return found


class StepHooks:
    """Calls `before(gradient)` and `after(update)` around each step of an optimizer.

    Costs one copy of the trained parameters. `gradient` is None where no parameter has one. What
    fails in here goes to `failed`, never into the training loop.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[Tensor],
        before: Callable[[Vector | None], None],
        after: Callable[[Vector], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.parameters = parameters
        self._kept = clone(parameters)

        def pre_step(*_: Any) -> None:
            copy_into(self._kept, self.parameters)
            before(self._gradient())

        def post_step(*_: Any) -> None:
            after(subtract(self.parameters, self._kept))

        self._handles = [
            optimizer.register_step_pre_hook(_shielded(pre_step, failed)),
            optimizer.register_step_post_hook(_shielded(post_step, failed)),
        ]

    def _gradient(self) -> Vector | None:
        grads = [parameter.grad for parameter in self.parameters]
        if all(grad is None for grad in grads):
            return None
        return [
            torch.zeros_like(parameter) if grad is None else grad
            for parameter, grad in zip(self.parameters, grads, strict=True)
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def _shielded(
    hook: Callable[..., None], failed: Callable[[Exception], None]
) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        try:
            with torch.no_grad():
                hook(*arguments)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a training run
            failed(error)

    return run
