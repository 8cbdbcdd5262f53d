"""Hooks around an optimizer's step: the task gradient before it, the applied update after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError
from riprap.linalg import Vector, clone, copy_into, subtract

MAX_WRAPPERS = 5  # more than anybody puts around an optimizer


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside wrappers such as Accelerate's.

    Raises:
        ConfigError: it is not a `torch.optim.Optimizer`, or is one of DeepSpeed's.
    """
    _refuse_deepspeed(optimizer)
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"cannot watch a {type(optimizer).__name__}: give the torch.optim.Optimizer whose "
            "step() trains the model"
        )
    return optimizer


def _refuse_deepspeed(thing: Any) -> None:
    """Refuse an engine or optimizer of DeepSpeed's, also under wrappers.

    The engine steps a flat copy of the parameters by itself: a hook on what looks like a torch
    optimizer, inside it or (Accelerate's wrapper) around it, would never be called, or see nothing.
    """
    for _ in range(MAX_WRAPPERS):
        if any(kind.__module__.startswith("deepspeed.runtime") for kind in type(thing).__mro__):
            raise ConfigError(
                f"cannot watch a {type(thing).__name__}: DeepSpeed steps inside its own engine, "
                "where no hook sees it; train with DDP or FSDP2, or, under ZeRO stages 1 and 2, "
                "read margins between steps by riprap.evaluation.evaluate(behavior, engine.module)"
            )
        thing = getattr(thing, "optimizer", None)


def trained_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer, modules: Sequence[str] = ()
) -> list[Tensor]:
    """The model's parameters that the optimizer changes, in the optimizer's order.

    Args:
        within: names of modules; their parameters only. Empty: all.

    Raises:
        ConfigError: there are none, or the model is a DeepSpeed engine.
    """
    _refuse_deepspeed(model)
    own = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if not modules or any(name == part or name.startswith(f"{part}.") for part in modules)
    }
    found = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and id(parameter) in own
    ]
    if not found and modules:
        raise ConfigError(
            f"nothing to watch within {', '.join(modules)}: no trained parameter lies there; give "
            "names of modules as model.named_modules() has them"
        )
    if not found:
        raise ConfigError(
            "nothing to watch: the optimizer holds no trainable parameter of this model "
            "(is it frozen, or was the optimizer made for another one?)"
        )
    return found


class StepIntervention(Protocol):
    """What may change a step; its failures stop training."""

    def on_gradients(self, vector: Vector | None, scale: float) -> None:
        """Before the step; `scale` is what `.grad` is multiplied by, as against `vector`."""

    def on_update(self, vector: Vector, before: Vector) -> Vector:
        """After the step; the update that stands in the end."""

    def after_step(self) -> None:
        """After the step has been watched."""


class StepHooks:
    """Calls `before(gradient)` and `after(update)` around each step of an optimizer.

    Where the step is given a closure, `before` is called once the closure has made the gradient.
    Costs one copy of the trained parameters. `gradient` is None where no parameter has one. What
    fails in here goes to `failed`, never into the training loop; `intervention` is the exception.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[Tensor],
        before: Callable[[Vector | None], None],
        after: Callable[[Vector], None],
        failed: Callable[[Exception], None],
        intervention: StepIntervention | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self._kept = clone(parameters)

        @_never_raise(failed)
        def show() -> None:
            before(self._gradient())

        def read() -> None:
            show()
            if intervention is not None:
                with torch.no_grad():
                    intervention.on_gradients(self._gradient(), self._scale)

        @_never_raise(failed)
        def keep() -> None:
            copy_into(self._kept, self.parameters)

        @_never_raise(failed)
        def tell(update: Vector | None = None) -> None:
            after(subtract(self.parameters, self._kept) if update is None else update)

        @torch.no_grad()
        def post_step(*_: Any) -> None:
            if intervention is None:
                tell()
            else:
                update = subtract(self.parameters, self._kept)
                tell(intervention.on_update(update, self._kept))
                intervention.after_step()

        def pre_step(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            keep()
            given = len(args) > 1  # by position; the first is the optimizer itself
            closure = args[1] if given else kwargs.get("closure")
            if closure is None:
                read()
                return None
            # The closure makes the gradient: before it, there is the last step's, or none.
            watched = _call_after_first(closure, read)
            if given:
                return (args[0], watched, *args[2:]), kwargs
            return args, kwargs | {"closure": watched}

        self._pre_step, self._post_step = pre_step, post_step
        self._register()

    def _register(self) -> None:
        self._handles = [
            self.optimizer.register_step_pre_hook(self._pre_step),
            self.optimizer.register_step_post_hook(self._post_step),
        ]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Steps inside are not seen."""
        self.remove()
        try:
            yield
        finally:
            self._register()

    @property
    def _scale(self) -> float:
        scale = getattr(self.optimizer, "grad_scale", None)  # fused optimizers unscale in step()
        return 1.0 if scale is None else float(scale)

    def _gradient(self) -> Vector | None:
        grads = [parameter.grad for parameter in self.parameters]
        if all(grad is None for grad in grads):
            return None
        by = 1.0 / self._scale
        return [
            torch.zeros_like(parameter) if grad is None else grad if by == 1.0 else grad * by
            for parameter, grad in zip(self.parameters, grads, strict=True)
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def _never_raise(
    failed: Callable[[Exception], None],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What fails in the decorated function goes to `failed`, and it builds no graph."""

    def wrap(hook: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            try:
                with torch.no_grad():
                    hook(*arguments)
            except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
                failed(error)

        return run

    return wrap


def _call_after_first(closure: Callable[[], Any], read: Callable[[], None]) -> Callable[[], Any]:
    """The closure, followed by `read` the first time it is called, which is at the old θ."""
    called = False

    def watched() -> Any:
        nonlocal called
        value = closure()
        if not called:
            called = True
            read()
        return value

    return watched
