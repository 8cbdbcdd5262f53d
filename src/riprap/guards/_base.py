"""What every guard is: it looks at a step, and proposes another gradient or another update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior
from riprap.detectors import BehaviorHistory
from riprap.errors import ConfigError
from riprap.linalg import Vector
from riprap.signals import ProtectedGradients
from riprap.types import Alert, Forecast, Level


@dataclass
class GuardView:
    """What a guard is given to decide on.

    Attributes:
        step: number of the step under way, from 1; in `start` the steps taken so far.
        model: the model, out of DDP's wrapper.
        parameters: the trained parameters, in the order of every vector.
        behaviors: what the monitor watches, by name.
        held: protected gradients taken last; see `Guard.needs` and `Guard.refresh`.
        vector: before the step the task gradient, after it the applied update Δθ. To be read, never
            written.
        before: the parameters before the step, in `on_update`.
        tracks, forecasts: what is known of each behaviour, by name.
        standing: the most serious level that stands now, by name; nothing where none does.
        optimizer: the one that trains.
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
    """What a guard wants done with a step.

    Attributes:
        vector: to be put in the place of the gradient or update; None: leave it as it is.
        detail: what it does, or why nothing is to be done.
        before, after: numbers before and after, such as inner products by behaviour.
        stop: why training is to stop after this step, in one sentence; empty: it goes on.
    """

    vector: Vector | None = None
    detail: str = ""
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    stop: str = ""


@dataclass
class RestoreProposal(Proposal):
    """A proposal to go back, from `on_visit` alone.

    Attributes:
        to: the step after which the state was as it is to be again.
        put_back: makes it so: weights, and whatever else belongs to that state.
    """

    to_step: int = field(kw_only=True)
    restore: Callable[[], None] = field(kw_only=True)


@dataclass
class Guard:
    """An opt-in intervention. It decides; whoever runs it applies, records, or only records.

    Moments, each optional: `start` once before the first step, `on_gradients` before each step of
    the optimizer, `on_update` after it; whenever the probes were visited after a step, `on_alert`
    for each alert that this raised, and then `on_visit`. A moment that returns None had nothing to
    do; a proposal without a vector says why it left the step alone.

    Attributes:
        shadow: record what would have been done, and change nothing.
        needs: which protected gradients it reads: "margin" (h_b), "loss" (g_b).
        refresh: the oldest, in steps, that those may be.
        grows: whether the result may be longer than what came in.
        origin: the field that the method comes from.
        source: paper, and how faithful this is to it: faithful, simplified or variant.
        remembers: names of the attributes that a run taken up again needs.
    """

    shadow: bool = field(default=False, kw_only=True)
    refresh: int | None = field(default=None, kw_only=True)

    name: ClassVar[str]
    field_of_origin: ClassVar[str] = "ours"
    source: ClassVar[str] = ""
    fidelity: ClassVar[str] = "variant"  # a faithful one says so
    needs: ClassVar[frozenset[str]] = frozenset()
    may_increase_norm: ClassVar[bool] = False
    state_attrs: ClassVar[tuple[str, ...]] = ()

    def start(self, view: GuardView) -> None:
        """Fix what later steps are compared with.

        Raises:
            ConfigError: the guard cannot work on this model, these behaviours or this optimizer.
        """

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Propose another gradient in place of `view.vector`."""
        return None

    def on_update(self, view: GuardView) -> Proposal | None:
        """Propose another update in place of `view.vector`."""
        return None

    def on_alert(self, alert: Alert) -> None:
        """Take note of an alert."""

    def on_probe_evaluation(self, view: GuardView) -> Proposal | None:
        """Propose to go back to an earlier state, or to stop, on what was just seen.

        The weights are those after step `view.step`. After a `Return` the probes are visited again.
        """
        return None

    def attach_trainer_state(self, lr_scheduler: Any = None, grad_scaler: Any = None) -> None:
        """Receive the trainer's learning-rate scheduler and gradient scaler, before `start`."""

    def flatten(self) -> Iterator[Guard]:
        """The guards that this one is made of, itself if it is simple."""
        yield self

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """Those of its leaves whose turn it is at this step, in order."""
        yield self

    def state_dict(self) -> dict[str, Any]:
        """What a run that is taken up again needs, as plain values and tensors."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self.state_attrs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name in self.state_attrs:
            setattr(self, name, state[name])


def behavior_names(
    guard_name: str, behaviors: Sequence[Behavior | str] | None, monitored: Mapping[str, Behavior]
) -> list[str]:
    """Names of the behaviours that a guard protects; None: all that are watched.

    Raises:
        ConfigError: one of them is not watched.
    """
    if behaviors is None:
        return list(monitored)
    names = [one if isinstance(one, str) else one.name for one in behaviors]
    unknown = [name for name in names if name not in monitored]
    if unknown:
        raise ConfigError(
            f"guard {guard_name}: behaviour {unknown[0]!r} is not watched; the monitor watches "
            f"{', '.join(monitored)}"
        )
    if not names:
        raise ConfigError(f"guard {guard_name} protects nothing: name a behaviour")
    return names
