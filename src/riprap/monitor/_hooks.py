"""Hooks around an optimizer's step: the task gradient before it, the applied update after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakMethod, WeakSet, finalize

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from riprap.linalg import Differences, Vector, clone, copy_into, densify
from riprap.monitor._cost_meter import CostMeter
from riprap.monitor._optimizers import parameters_of


class StepIntervention(Protocol):
    """Interface of what may change a step; its failures stop training."""

    def on_gradients(self, gradient: Vector | None, scale: float) -> None:
        """Run before the step; `scale` is the factor of `.grad` against `gradient`."""

    @property
    def reads_updates(self) -> bool:
        """True if `on_update` reads the update of the coming step."""

    def on_update(self, update: Vector | None, params_before: Vector) -> None:
        """Run after the step, which it may change; None: `reads_updates` was False."""

    def after_step(self) -> None:
        """Run after the monitor has read the step."""


class StepObserver(Protocol):
    """Interface of what reads steps; its failures are recorded, except those of `prepare`.

    Attributes:
        meter: measures the time of what the hooks do.
    """

    meter: CostMeter

    @property
    def reads_gradients(self) -> bool:
        """True if `before_step` reads the gradient of each step."""

    @property
    def reads_each_step(self) -> bool:
        """True if `after_step` reads the update of each step by itself."""

    def prepare(self) -> None:
        """Run first, before anything is read; it may call `StepHooks.set_parameters`."""

    def before_step(self, gradient: Vector | None) -> None:
        """Read the gradient; None if no parameter has one, or `reads_gradients` is False."""

    def after_step(self) -> None:
        """Note the step; read `StepHooks.update`, now and then or after each step."""

    def finish(self) -> None:
        """Run last, after the intervention."""

    def on_skipped_step(self) -> None:
        """Note that an optimizer was called and takes no step, because of an overflow."""

    def on_foreign_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note that an optimizer stepped that is not watched; called once for each of them."""

    def record_failure(self, error: Exception) -> None:
        """Record that one of the above failed."""


class StepHooks:
    """Hooks that call an observer, and an intervention, around the steps of optimizers.

    A step is one step of *all* optimizers: `before_step` is called when each of them is about to
    step or has stepped, with the gradient that each one used; `after_step` after the last of them.
    An optimizer that steps again before the others did ends the step.

    If a step has a closure, its gradient is read after the closure has computed it. Costs the
    memory of one copy of the trained parameters; it is written when an update is read, or before
    each step if somebody reads the update of each step by itself.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        parameters: list[Tensor],
        observer: StepObserver,
        intervention: StepIntervention | None = None,
    ) -> None:
        self.optimizers = list(optimizers)
        self._observer, self._intervention = observer, intervention
        self._handles: list[RemovableHandle] = []
        self._open: set[int] = set()  # optimizers whose gradient was read in this step, by id
        self._stepped: set[int] = set()  # those that have stepped
        self._skipping: set[int] = set()  # those inside a step that changes nothing
        self._delivered = self._guard_reads = False
        self._foreign: WeakSet[torch.optim.Optimizer] = WeakSet()  # optimizers looked at before
        self.parameters = parameters
        self._params_before: Vector = []
        self._gradients: list[Tensor | None] = []

    def attach(self) -> None:
        """Register the hooks."""
        self.set_parameters(self.parameters)
        self._register()

    def set_parameters(self, parameters: list[Tensor]) -> None:
        """Read these parameters from now on."""
        self.parameters = parameters
        self._params_before = clone(parameters)
        self._gradients = [None] * len(parameters)
        index = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._own = {
            id(one): [index[id(p)] for p in parameters_of(one) if id(p) in index]
            for one in self.optimizers
        }

    def held(self) -> list[tuple[int, bool]]:
        """Return id and `requires_grad` of all parameters that the optimizers hold."""
        return [(id(p), p.requires_grad) for one in self.optimizers for p in parameters_of(one)]

    def resized(self) -> list[Tensor]:
        """Return the parameters whose shape has changed since they were set."""
        pairs = zip(self.parameters, self._params_before, strict=True)
        return [parameter for parameter, before in pairs if parameter.shape != before.shape]

    @property
    def update(self) -> Differences:
        """The update since the last `mark_as_read`, or of this step where each one is read."""
        return Differences(self.parameters, self._params_before)

    @torch.no_grad()
    def mark_as_read(self) -> None:
        """Let `update` begin at the parameters as they are now."""
        copy_into(self._params_before, self.parameters)

    def _register(self) -> None:
        # A compiled `optimizer.step` would trace the hooks, and lose what they read.
        before = torch.compiler.disable(self._pre_step)
        after = torch.compiler.disable(self._post_step)
        self._handles = [
            handle
            for one in self.optimizers
            for handle in (one.register_step_pre_hook(before), one.register_step_post_hook(after))
        ]
        self._handles.append(_register_for_all(self._any_post_step))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disable the hooks in a `with` block."""
        self.remove()
        try:
            yield
        finally:
            self._register()

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def end(self) -> None:
        """Remove the hooks, and read a step that not all optimizers have taken."""
        self.remove()
        if self._stepped:
            self._end_step()

    def _pre_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        with self._observer.meter.measure("hooks"):
            return self._before(optimizer, args, kwargs)

    def _before(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, Any] | None:
        if id(optimizer) in self._stepped:
            self._end_step()
        if _will_skip(optimizer):
            self._skipping.add(id(optimizer))
            self._isolated(self._observer.on_skipped_step)
            return None
        if not self._stepped:
            self._begin_step()
        positional = len(args) > 1  # the first is the optimizer itself
        closure = args[1] if positional else kwargs.get("closure")
        if closure is None:
            self._on_gradient(optimizer)
            return None
        # The closure computes the gradient; before it, `.grad` is that of the last step.
        wrapped = _call_after_first(closure, lambda: self._on_closure(optimizer))
        if positional:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, kwargs | {"closure": wrapped}

    @torch.no_grad()
    def _post_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if id(optimizer) in self._skipping:
            self._skipping.remove(id(optimizer))
            return
        with self._observer.meter.measure("hooks"):
            self._stepped.add(id(optimizer))
            if len(self._stepped) == len(self.optimizers):
                self._end_step()

    def _any_post_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Tell of another optimizer, once."""
        if id(optimizer) in self._own or self._open - self._stepped or optimizer in self._foreign:
            return  # watched, or inside a step that is watched, or known
        self._foreign.add(optimizer)
        if any(id(part) in self._own for part in vars(optimizer).values()):
            return  # a wrapper around a watched optimizer
        self._isolated(self._observer.on_foreign_step, optimizer)

    def _begin_step(self) -> None:
        self._observer.prepare()
        guard = self._intervention
        self._guard_reads = guard is not None and guard.reads_updates
        if self._observer.reads_each_step or self._guard_reads:
            self._isolated(self.mark_as_read)
        self._open, self._delivered = set(), False
        self._gradients = [None] * len(self.parameters)

    def _on_closure(self, optimizer: torch.optim.Optimizer) -> None:
        with self._observer.meter.measure("hooks"):
            self._on_gradient(optimizer)

    def _on_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the optimizer's gradient; deliver all of them when the last one is there."""
        if self._observer.reads_gradients or self._intervention is not None:
            self._isolated(self._keep_gradient, optimizer)
        self._open.add(id(optimizer))
        if len(self._open) == len(self.optimizers):
            self._deliver()

    def _keep_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        factor = 1.0 / _scale(optimizer)
        for index in self._own[id(optimizer)]:
            grad = self.parameters[index].grad
            grad = None if grad is None else densify(grad)
            self._gradients[index] = grad if grad is None or factor == 1.0 else grad * factor

    def _deliver(self) -> None:
        self._delivered = True
        gradient = self._gradient() if self._observer.reads_gradients else None
        self._isolated(self._observer.before_step, gradient)
        if self._intervention is not None:
            with torch.no_grad(), self._observer.meter.measure("guard"):
                self._intervention.on_gradients(self._gradient(), _scale(self.optimizers[0]))
        self._gradients = [None] * len(self.parameters)

    @torch.no_grad()
    def _end_step(self) -> None:
        if not self._delivered:
            self._deliver()
        self._open, self._stepped = set(), set()
        guard = self._intervention
        if guard is not None:
            with self._observer.meter.measure("guard"):
                update = list(self.update) if self._guard_reads else None
                guard.on_update(update, self._params_before)
        self._isolated(self._observer.after_step)
        if guard is not None:
            with self._observer.meter.measure("guard"):
                guard.after_step()
        self._isolated(self._observer.finish)

    def _gradient(self) -> Vector | None:
        if all(grad is None for grad in self._gradients):
            return None
        return [
            torch.zeros_like(parameter) if grad is None else grad
            for parameter, grad in zip(self.parameters, self._gradients, strict=True)
        ]

    def _isolated(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call without gradients; an exception goes to the observer, never into training."""
        try:
            with torch.no_grad():
                call(*arguments)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self._observer.record_failure(error)


def _scale(optimizer: torch.optim.Optimizer) -> float:
    """Return the factor of `.grad` against the gradient: a fused optimizer unscales in step()."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def _will_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a fused optimizer was told of an overflow: its step then changes nothing."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found > 0)


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


def _register_for_all(method: Callable[..., None]) -> RemovableHandle:
    """Call a method after the step of any optimizer, for as long as its owner lives.

    A training that raises an exception removes no hooks. Without the weak reference, the watch and
    the lock of its record would last as long as the process.
    """
    weak = WeakMethod(method)

    def hook(*arguments: Any) -> None:
        if (live := weak()) is not None:
            live(*arguments)

    handle = register_optimizer_step_post_hook(torch.compiler.disable(hook))
    finalize(method.__self__, handle.remove).atexit = False  # type: ignore[attr-defined]
    return handle
