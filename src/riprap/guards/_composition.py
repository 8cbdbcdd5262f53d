"""Guards made of guards: one after another, while an alert stands, during some steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from riprap.detectors import score
from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView
from riprap.types import Alert, Level


class CompositeGuard(Guard):
    """A guard that only says whose turn it is.

    With `shadow=True` none of its parts changes anything.
    """

    fidelity: ClassVar[str] = "variant"
    parts: tuple[Guard, ...]

    def _set_parts(self, *parts: Guard, shadow: bool) -> None:
        """Take the parts over; a shadow falls on all of them, however deep they lie."""
        self.parts = parts
        for leaf in self.flatten():
            leaf.shadow = leaf.shadow or shadow

    def flatten(self) -> Iterator[Guard]:
        """All guards inside."""
        for part in self.parts:
            yield from part.flatten()

    def attach_trainer_state(self, lr_scheduler: Any = None, grad_scaler: Any = None) -> None:
        """Pass the trainer's scheduler and scaler to all parts."""
        for part in self.parts:
            part.attach_trainer_state(lr_scheduler, grad_scaler)

    def on_alert(self, alert: Alert) -> None:
        """Hand it on."""
        for part in self.parts:
            part.on_alert(alert)

    def state_dict(self) -> dict[str, Any]:
        """Its own and those of its parts."""
        return {"own": super().state_dict(), "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state["own"])
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


class Chain(CompositeGuard):
    """Guards one after another; each is given what the one before it left."""

    name: ClassVar[str] = "chain"

    def __init__(self, *parts: Guard, shadow: bool = False) -> None:
        if not parts:
            raise ConfigError("Chain() of no guards: give at least one")
        self._set_parts(*parts, shadow=shadow)

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """Those of each part, in order."""
        for part in self.parts:
            yield from part.active_guards(view)


class OnAlert(CompositeGuard):
    """A guard that acts while an alert stands.

    Args:
        guard: what to do then.
        level: the mildest level that wakes it.
        until: "recovered": until the behaviours that were alerted of have a score at or above their
            floor and no forecast break again; "end": for good.
    """

    name: ClassVar[str] = "on_alert"
    state_attrs: ClassVar[tuple[str, ...]] = ("alerted",)

    def __init__(
        self,
        guard: Guard,
        level: str = "warning",
        until: str = "recovered",
        *,
        shadow: bool = False,
    ) -> None:
        if level not in list(Level):
            raise ConfigError(f"OnAlert(level={level!r}): choose one of {', '.join(Level)}")
        if until not in ("recovered", "end"):
            raise ConfigError(f"OnAlert(until={until!r}): choose 'recovered' or 'end'")
        self._set_parts(guard, shadow=shadow)
        self.level, self.until = Level(level), until
        self.alerted: list[str] = []

    def on_alert(self, alert: Alert) -> None:
        """Wake up, if it is serious enough."""
        super().on_alert(alert)
        if alert.level.rank >= self.level.rank and alert.behavior not in self.alerted:
            self.alerted.append(alert.behavior)

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """The guard, while an alert stands."""
        if self.until == "recovered":
            self.alerted = [name for name in self.alerted if not has_recovered(view, name)]
        if self.alerted:
            yield from self.parts[0].active_guards(view)


class Scheduled(CompositeGuard):
    """A guard that acts during some steps.

    Args:
        guard: what to do then.
        first, last: the steps, from 1, both included; `last=None`: to the end.
        every: only at each so many steps among them.
    """

    name: ClassVar[str] = "scheduled"

    def __init__(
        self,
        guard: Guard,
        first: int = 1,
        last: int | None = None,
        every: int = 1,
        *,
        shadow: bool = False,
    ) -> None:
        if every < 1 or (last is not None and last < first):
            raise ConfigError(f"Scheduled(first={first}, last={last}, every={every}) never acts")
        self._set_parts(guard, shadow=shadow)
        self.first, self.last, self.every = first, last, every

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """The guard, when its time has come."""
        past = self.last is not None and view.step > self.last
        if view.step >= self.first and not past and (view.step - self.first) % self.every == 0:
            yield from self.parts[0].active_guards(view)


def has_recovered(view: GuardView, name: str) -> bool:
    """Whether a behaviour's score is at or above its floor, and no break is forecast."""
    track, forecast = view.histories[name], view.forecasts.get(name)
    healthy = bool(track.steps) and score(track.margins[-1]) >= track.floor
    return healthy and (forecast is None or not forecast.predicts_break)
