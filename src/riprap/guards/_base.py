"""Base class of all guards, with the view that a guard reads and the proposals that it returns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from riprap._checks import CheckedCall, shown
from riprap._distributed import warn_once
from riprap._warnings import warn
from riprap.behaviors import Behavior
from riprap.detectors import BehaviorHistory
from riprap.errors import ConfigError
from riprap.evaluation import ProtectedGradients, fisher_diagonal, probe_gradients
from riprap.linalg import Vector, norm, to_local
from riprap.types import Alert, Forecast, Level


@dataclass
class GuardView:
    """Everything that a guard may read when it decides.

    Attributes:
        step: number of the current step, from 1; in `start` the number of steps taken so far.
        model: the model, without DDP's wrapper.
        parameters: the trained parameters, in the order of every vector.
        behaviors: the monitored behaviors, by name.
        protected_gradients: the most recent ones; see `Guard.needs` and `Guard.refresh`.
        vector: before the step the task gradient, after it the applied update Δθ. Read-only.
        before: the parameters before the step; only in `on_update`.
        histories, forecasts: margins so far and the current forecast of each behavior, by name.
        active_levels: the most serious active alert level of each behavior, by name; a behavior
            without an active alert has no entry.
        optimizer: the optimizer that trains the model.
    """

    step: int
    model: nn.Module
    parameters: list[Tensor]
    behaviors: Mapping[str, Behavior]
    protected_gradients: ProtectedGradients
    optimizer: torch.optim.Optimizer
    histories: Mapping[str, BehaviorHistory] = field(default_factory=dict)
    forecasts: Mapping[str, Forecast | None] = field(default_factory=dict)
    active_levels: Mapping[str, Level] = field(default_factory=dict)
    vector: Vector = field(default_factory=list)
    before: Vector = field(default_factory=list)


@dataclass
class Proposal:
    """The change to a step that a guard proposes.

    Attributes:
        vector: replacement for the gradient or update; None leaves it unchanged.
        detail: what the guard does, or why it does nothing.
        before, after: numbers before and after the change, such as inner products by behavior.
        stop: why training should stop after this step, in one sentence; empty to continue.
    """

    vector: Vector | None = None
    detail: str = ""
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    stop: str = ""


@dataclass
class RestoreProposal(Proposal):
    """A proposal to restore an earlier state; only `on_probe_evaluation` may return it.

    Attributes:
        to_step: the step whose state is restored.
        restore: restores the weights and everything else that belongs to that state.
    """

    to_step: int = field(kw_only=True)
    restore: Callable[[], None] = field(kw_only=True)


@dataclass
class Guard(metaclass=CheckedCall):
    """An opt-in intervention. A guard decides; its runner applies or only records the decision.

    A guard overrides any of these hooks: `start` runs once before the first step, `on_gradients`
    before each step of the optimizer, `on_update` after it. After each probe evaluation `on_alert`
    runs for each new alert, then `on_probe_evaluation`. A hook returns None if it had nothing to
    do; a proposal without a vector explains why the step is unchanged. `on_step_end` runs after
    each step, whether the guard is active or not, and `end` runs once at last.

    Attributes:
        shadow: record what the guard would have done, and change nothing.
        refresh: maximum age of the protected gradients that the guard reads, in steps.
        name: short name in records and states.
        field_of_origin: the research field of the method.
        source: the paper, as an arXiv number.
        fidelity: "faithful" to the paper, "simplified" (leaves something out) or "variant"
            (differs in a choice that matters).
        needs: the protected gradients that the guard reads: "margin" (h_b), "loss" (g_b).
        may_increase_norm: whether the result may be longer than the vector that came in.
        per_parameter: whether the guard stores something for each trained parameter in `start`.
        reads_interference: whether interference must be read after each step for this guard. Else
            the guard finds what the monitor reads anyway. May change between two steps.
        state_attrs: names of the attributes that a resumed run needs.
        left_out: behaviors that the guard does not protect for now, because what it needs of them
            is not finite; see `leave_out`.
        part_of: name of the AutoGuard whose part this guard is in the latest watch, or empty.
    """

    shadow: bool = field(default=False, kw_only=True)
    refresh: int | None = field(default=None, kw_only=True)
    left_out: tuple[str, ...] = field(default=(), init=False, repr=False)
    part_of: str = field(default="", init=False, repr=False)
    _told: tuple[str, ...] = field(default=(), init=False, repr=False)

    name: ClassVar[str]
    field_of_origin: ClassVar[str] = "ours"
    source: ClassVar[str] = ""
    fidelity: ClassVar[str] = "variant"
    needs: ClassVar[frozenset[str]] = frozenset()
    may_increase_norm: ClassVar[bool] = False
    per_parameter: ClassVar[bool] = False
    reads_interference: ClassVar[bool] = False
    state_attrs: ClassVar[tuple[str, ...]] = ()

    @property
    def label(self) -> str:
        """Name in actions and messages: for a part "whole/part"."""
        return f"{self.part_of}/{self.name}" if self.part_of else self.name

    @property
    def doubts(self) -> dict[str, str]:
        """Sentence on what seems wrong with the old examples, by behavior, found at the start."""
        return {}

    @property
    def reads_gradients(self) -> bool:
        """True if the guard reads the gradient before each step: it overrides `on_gradients`."""
        return _is_overridden(self.on_gradients, Guard.on_gradients)

    @property
    def reads_updates(self) -> bool:
        """True if the guard reads the update after each step: it overrides `on_update`.

        An update takes a copy of the trained parameters before the step.
        """
        return _is_overridden(self.on_update, Guard.on_update)

    def start(self, view: GuardView) -> None:
        """Check the setup and record the reference that later steps are compared with.

        Raises:
            ConfigError: the guard cannot work with this model, these behaviors or this optimizer.
        """

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Take up parameters that join training with the coming step.

        Args:
            joined: their positions in `view.parameters`, ascending; the others keep their order.

        Raises:
            ConfigError: the guard stores something for each parameter, and cannot extend it.
        """
        if self.per_parameter:
            raise self._error(
                f"{len(joined)} tensors joined training after step {view.step}, and the guard "
                "protects only those from the start: let all of them require gradients, in the "
                "optimizer, before the watch begins, or begin a new watch when they join"
            )

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Propose another gradient in place of `view.vector`."""
        return None

    def on_update(self, view: GuardView) -> Proposal | None:
        """Propose another update in place of `view.vector`."""
        return None

    def on_alert(self, alert: Alert) -> None:
        """Receive a new alert."""

    def on_probe_evaluation(self, view: GuardView) -> Proposal | None:
        """Propose to restore an earlier state, or to stop, given the latest probe results.

        The weights are those after step `view.step`. After a `RestoreProposal` the probes are
        evaluated again.
        """
        return None

    def on_step_end(self) -> None:
        """Drop what was kept for the step that was taken, or skipped; also while inactive."""

    def end(self, view: GuardView) -> None:
        """Release what `start` took, such as hooks on the model; runs once, after the last step.

        It also runs if the watch could not begin; then `start` may not have run, or not to its end.
        """

    def attach_trainer_state(self, lr_scheduler: Any = None, grad_scaler: Any = None) -> None:
        """Receive the trainer's learning-rate scheduler and gradient scaler, before `start`."""

    def flatten(self) -> Iterator[Guard]:
        """Iterate over the simple guards inside; a simple guard yields itself."""
        yield self

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """Iterate over the simple guards inside that act at this step, in order."""
        yield self

    def leave_out(self, names: Iterable[str], what: str) -> None:
        """Protect the other behaviors only, until the next call; name these in each action.

        Warns of each behavior once.

        Args:
            names: behaviors of which something is not finite.
            what: that something.
        """
        self.left_out = tuple(names)
        new = [name for name in self.left_out if name not in self._told]
        if new:
            self._told += tuple(new)
            warn_once(
                f"guard {self.label}: {what} of {', '.join(map(repr, new))} is not finite; the "
                "guard goes on, and protects only the other behaviors"
            )

    def _error(self, text: str) -> ConfigError:
        return ConfigError(f"guard {self.label}: {text}")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values and tensors."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self.state_attrs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        for name in self.state_attrs:
            setattr(self, name, state[name])


@dataclass
class BehaviorGuard(Guard):
    """Base of guards that protect some of the monitored behaviors.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones.
    """

    behaviors: Sequence[Behavior | str] | None = None
    names: list[str] = field(default_factory=list, init=False, repr=False)

    def finite_behaviors(self, vectors: Mapping[str, Sequence[Tensor]], what: str) -> list[str]:
        """Return the behaviors whose tensors are finite; leave out the others, see `leave_out`.

        Raises:
            ConfigError: none is finite.
        """
        sick = [name for name, vector in vectors.items() if not is_finite(vector)]
        if len(sick) == len(vectors):
            raise self._error(f"{what} of no behavior is finite; give others, or check the model")
        self.leave_out(sick, what)
        return [name for name in vectors if name not in sick]

    def finite_terms(
        self, terms: Mapping[str, tuple[float, Vector | None]], what: str
    ) -> list[tuple[float, Vector | None]]:
        """Return the values and gradients that are finite; leave out the other behaviors.

        If none is finite, nor is the model: then all are returned, and none is left out.
        """
        sick = [name for name, term in terms.items() if not _are_finite(*term)]
        if len(sick) == len(terms):
            sick = []
        self.leave_out(sick, what)
        return [term for name, term in terms.items() if name not in sick]

    def finite_fishers(self, view: GuardView, of: str, required: bool = True) -> dict[str, Vector]:
        """Estimate the diagonal Fisher of each protected behavior; leave out those not finite.

        Args:
            of: "loss" or "margin".
            required: each behavior must have a gradient; False: those without are missing.

        Raises:
            ConfigError: none is finite, or a required gradient is missing.
        """
        found: dict[str, Vector] = {}
        for name in self.names:
            fisher = fisher_diagonal(view.behaviors[name], view.model, view.parameters, of)
            if fisher is not None:
                found[name] = fisher
            elif required:
                raise self._no_gradient(name, of)
        if not found:
            return {}
        finite = self.finite_behaviors(found, "the Fisher information")
        return {name: found[name] for name in finite}

    def finite_probe_gradients(self, view: GuardView, share: int, of: str) -> list[Vector]:
        """Compute the gradients of `share` probes a behavior; leave out behaviors not finite.

        Args:
            of: "loss" or "margin".

        Raises:
            ConfigError: a behavior has none that reaches a trained parameter, or none is finite.
        """
        found: dict[str, list[Vector]] = {}
        for name in self.names:
            rows = probe_gradients(view.behaviors[name], view.model, view.parameters, share, of)
            if rows is None:
                raise self._no_gradient(name, of)
            found[name] = rows
        tensors = {name: [part for row in rows for part in row] for name, rows in found.items()}
        finite = self.finite_behaviors(tensors, "the gradient")
        return [row for name in finite for row in found[name]]

    def _no_gradient(self, name: str, of: str) -> ConfigError:
        what, give = "margins", "margins attached to the graph"
        if of == "loss":
            what, give = "losses", "Behavior(losses=...), or of='margin'"
        return self._error(
            f"behavior {name!r} has no {what} that reach a trained parameter; give {give}"
        )

    def warn_of_unprotected(self, view: GuardView, importance: Sequence[Tensor]) -> None:
        """Warn of trained tensors whose importance is exactly 0, which the guard does not hold.

        In a new LoRA B is 0, so that nothing depends on A.

        Args:
            importance: one tensor for each parameter.
        """
        names = {id(parameter): name for name, parameter in view.model.named_parameters()}
        free = [
            names.get(id(parameter), "a tensor")
            for parameter, part in zip(view.parameters, importance, strict=True)
            if not bool(to_local(part).any())
        ]
        if not free:
            return
        adapter = ""
        if any("lora_A" in name for name in free):
            adapter = (
                " A LoRA's A has no importance while its B is 0: use KL or replay, which protect "
                "the outputs, or start after some steps of training."
            )
        warn(
            f"guard {self.label}: {len(free)} of {len(importance)} trained tensors have an "
            f"importance of exactly 0, so the guard does not hold them, such as {free[0]}.{adapter}"
        )

    def select_behaviors(self, view: GuardView) -> list[Behavior]:
        """Return the protected behaviors, and store their names; see `behavior_names`."""
        self.names = behavior_names(self.name, self.behaviors, view.behaviors)
        return [view.behaviors[name] for name in self.names]


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Return True if all elements of some tensors are finite, on all ranks."""
    vector = list(tensors)
    return not vector or math.isfinite(float(norm(vector)))


def sum_of_finite(
    compute: Callable[[list[str]], tuple[float, Vector | None]], names: Sequence[str]
) -> tuple[float, Vector | None, list[str]]:
    """Compute a value and its gradient over behaviors, without those where they are not finite.

    Args:
        compute: the value over some behaviors, together, and its gradient.

    Returns:
        value, gradient and the names that were left out. If all had to be left out the model itself
        is not finite; then none is, and the value is that of all.
    """
    value, gradient = compute(list(names))
    if _are_finite(value, gradient) or len(names) == 1:
        return value, gradient, []
    sick = [name for name in names if not _are_finite(*compute([name]))]
    if not sick or len(sick) == len(names):
        return value, gradient, []
    return *compute([name for name in names if name not in sick]), sick


def _are_finite(value: float, gradient: Vector | None) -> bool:
    return math.isfinite(value) and (gradient is None or is_finite(gradient))


def _is_overridden(method: Callable[..., Any], default: Callable[..., Any]) -> bool:
    return getattr(method, "__func__", method) is not default


def behavior_names(
    guard_name: str, behaviors: Sequence[Behavior | str] | None, monitored: Mapping[str, Behavior]
) -> list[str]:
    """Return the names of the behaviors that a guard protects; None means all monitored ones.

    Raises:
        ConfigError: a behavior is not monitored, or the list is empty.
    """
    if behaviors is None:
        return list(monitored)
    if isinstance(behaviors, str | Behavior) or not isinstance(behaviors, Sequence):
        raise ConfigError(
            f"guard {guard_name}: behaviors={shown(behaviors)}: give a list of behaviors or of "
            "their names"
        )
    wrong = [entry for entry in behaviors if not isinstance(entry, str | Behavior)]
    if wrong:
        raise ConfigError(
            f"guard {guard_name}: behaviors has {shown(wrong[0])}, which is neither a behavior nor "
            "the name of one"
        )
    names = [entry if isinstance(entry, str) else entry.name for entry in behaviors]
    unknown = [name for name in names if name not in monitored]
    if unknown:
        raise ConfigError(
            f"guard {guard_name}: behavior {unknown[0]!r} is not monitored; the monitor has "
            f"{', '.join(monitored)}"
        )
    if not names:
        raise ConfigError(f"guard {guard_name} protects nothing; name at least one behavior")
    return names
