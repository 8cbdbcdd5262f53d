"""Hooks around an optimizer's step: the task gradient before it, the applied update after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from riprap._distributed import find_deepspeed, unwrap_optimizer
from riprap.errors import ConfigError
from riprap.linalg import Vector, clone, copy_into, subtract


def require_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer inside wrappers such as Accelerate's.

    Raises:
        ConfigError: it is not a `torch.optim.Optimizer`, or it is DeepSpeed's.
    """
    _refuse_deepspeed(optimizer)
    optimizer = unwrap_optimizer(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"cannot watch a {type(optimizer).__name__}: give the torch.optim.Optimizer whose "
            "step() trains the model"
        )
    return optimizer


def _refuse_deepspeed(wrapper: Any) -> None:
    engine = find_deepspeed(wrapper)
    if engine is not None:
        raise ConfigError(
            f"cannot watch a {type(engine).__name__}: DeepSpeed steps inside its own engine, "
            "where no hook is called; train with DDP or FSDP2, or, under ZeRO stages 1 and 2, "
            "read margins between steps with riprap.evaluation.evaluate(behavior, engine.module)"
        )


def trained_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer, modules: Sequence[str] = ()
) -> list[Tensor]:
    """Return the model's parameters that the optimizer trains, in the optimizer's order.

    Args:
        modules: names of modules, to return only their parameters. Empty: all.

    Raises:
        ConfigError: there are none, or the model is a DeepSpeed engine.
    """
    _refuse_deepspeed(model)
    ids_in_model = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if not modules or any(name == part or name.startswith(f"{part}.") for part in modules)
    }
    trained = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
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
    return trained


class StepIntervention(Protocol):
    """Interface of what may change a step; its failures stop training."""

    def on_gradients(self, gradient: Vector | None, scale: float) -> None:
        """Run before the step; `scale` is the factor of `.grad` against `gradient`."""

    def on_update(self, update: Vector, params_before: Vector) -> Vector:
        """Run after the step; return the resulting update."""

    def after_step(self) -> None:
        """Run after the monitor has read the step."""


class StepHooks:
    """Hooks that call `before_step(gradient)` and `after_step(update)` around optimizer steps.

    If the step has a closure, `before_step` is called after the closure has computed the gradient.
    Costs one copy of the trained parameters. `gradient` is None if no parameter has one. Errors go
    to `on_error`, never into the training loop, except those of `intervention`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[Tensor],
        before_step: Callable[[Vector | None], None],
        after_step: Callable[[Vector], None],
        on_error: Callable[[Exception], None],
        intervention: StepIntervention | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self._params_before: Vector = []
        self._handles: list[RemovableHandle] = []

        @_isolated(on_error)
        def read_gradient() -> None:
            before_step(self._gradient())

        @_isolated(on_error)
        def save_parameters() -> None:
            copy_into(self._params_before, self.parameters)

        @_isolated(on_error)
        def read_update(update: Vector | None = None) -> None:
            after_step(subtract(self.parameters, self._params_before) if update is None else update)

        def on_gradient() -> None:
            read_gradient()
            if intervention is not None:
                with torch.no_grad():
                    intervention.on_gradients(self._gradient(), self._scale)

        def pre_step(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            save_parameters()
            positional = len(args) > 1  # the first is the optimizer itself
            closure = args[1] if positional else kwargs.get("closure")
            if closure is None:
                on_gradient()
                return None
            # The closure computes the gradient; before it, `.grad` is that of the last step.
            wrapped = _call_after_first(closure, on_gradient)
            if positional:
                return (args[0], wrapped, *args[2:]), kwargs
            return args, kwargs | {"closure": wrapped}

        @torch.no_grad()
        def post_step(*_: Any) -> None:
            if intervention is None:
                read_update()
            else:
                update = subtract(self.parameters, self._params_before)
                read_update(intervention.on_update(update, self._params_before))
                intervention.after_step()

        self._pre_step, self._post_step = pre_step, post_step

    def attach(self) -> None:
        """Register the hooks."""
        self._params_before = clone(self.parameters)
        self._register()

    def _register(self) -> None:
        self._handles = [
            self.optimizer.register_step_pre_hook(self._pre_step),
            self.optimizer.register_step_post_hook(self._post_step),
        ]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disable the hooks in a `with` block."""
        self.remove()
        try:
            yield
        finally:
            self._register()

    @property
    def _scale(self) -> float:
        scale = getattr(self.optimizer, "grad_scale", None)  # a fused optimizer unscales in step()
        return 1.0 if scale is None else float(scale)

    def _gradient(self) -> Vector | None:
        grads = [parameter.grad for parameter in self.parameters]
        if all(grad is None for grad in grads):
            return None
        factor = 1.0 / self._scale
        return [
            torch.zeros_like(parameter)
            if grad is None
            else grad
            if factor == 1.0
            else grad * factor
            for parameter, grad in zip(self.parameters, grads, strict=True)
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def _isolated(
    on_error: Callable[[Exception], None],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that sends exceptions to `on_error`, and disables gradients."""

    def decorate(hook: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            try:
                with torch.no_grad():
                    hook(*arguments)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                on_error(error)

        return run

    return decorate


def _call_after_first(
    closure: Callable[[], Any], callback: Callable[[], None]
) -> Callable[[], Any]:
    """Return the closure, with `callback` after its first call, which is at the old θ."""
    called = False

    def wrapped() -> Any:
        nonlocal called
        value = closure()
        if not called:
            called = True
            callback()
        return value

    return wrapped
