"""Guards made of other guards: in a chain, while an alert is active, or on a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from riprap._checks import shown
from riprap.detectors import score
from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView
from riprap.types import Alert, Level


class CompositeGuard(Guard):
    """Base of guards that decide which of their parts act at a step.

    With `shadow=True` no part changes anything.
    """

    parts: tuple[Guard, ...]

    def _set_parts(self, *parts: Guard, shadow: bool) -> None:
        """Store the parts; a shadow applies to all simple guards inside, at any depth."""
        wrong = [part for part in parts if not isinstance(part, Guard)]
        if wrong:
            raise ConfigError(
                f"{type(self).__name__}: {shown(wrong[0])} is no guard; give guards, as in "
                f"{type(self).__name__}(AGEM())"
            )
        self.parts = parts
        for leaf in self.flatten():
            leaf.shadow = leaf.shadow or shadow

    def __repr__(self) -> str:
        """Return the class with its parts."""
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"

    def start(self, view: GuardView) -> None:
        """Start all parts, in order."""
        for part in self.parts:
            part.start(view)

    def flatten(self) -> Iterator[Guard]:
        """Iterate over the simple guards of all parts."""
        for part in self.parts:
            yield from part.flatten()

    @property
    def doubts(self) -> dict[str, str]:
        """Sentences on the old examples of all parts; see `Guard.doubts`."""
        return {name: text for part in self.parts for name, text in part.doubts.items()}

    @property
    def reads_gradients(self) -> bool:
        """True if a part reads gradients; at a step, ask those of `active_guards`."""
        return any(part.reads_gradients for part in self.parts)

    @property
    def reads_updates(self) -> bool:
        """True if a part reads updates; at a step, ask those of `active_guards`."""
        return any(part.reads_updates for part in self.parts)

    @property
    def reads_interference(self) -> bool:  # type: ignore[override]
        """True if interference must be read after each step for a part."""
        return any(part.reads_interference for part in self.parts)

    def attach_trainer_state(self, lr_scheduler: Any = None, grad_scaler: Any = None) -> None:
        """Pass the trainer's scheduler and scaler to all parts."""
        for part in self.parts:
            part.attach_trainer_state(lr_scheduler, grad_scaler)

    def on_alert(self, alert: Alert) -> None:
        """Pass the alert to all parts."""
        for part in self.parts:
            part.on_alert(alert)

    def state_dict(self) -> dict[str, Any]:
        """Return the own state and the states of the parts."""
        return {"own": super().state_dict(), "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state["own"])
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


class Chain(CompositeGuard):
    """Guards in sequence; each one receives the result of the one before."""

    name: ClassVar[str] = "chain"

    def __init__(self, *parts: Guard, shadow: bool = False) -> None:
        if not parts:
            raise ConfigError("Chain() has no guards; give at least one")
        self._set_parts(*parts, shadow=shadow)

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """Iterate over the active guards of each part, in order."""
        for part in self.parts:
            yield from part.active_guards(view)


class OnAlert(CompositeGuard):
    """A guard that acts only while an alert is active.

    Args:
        guard: the guard that acts then.
        level: the mildest alert level that activates it.
        until: "recovered": until each behavior with an alert has a score at or above its floor
            and no forecast break; "end": until training ends.
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

    def start(self, view: GuardView) -> None:
        """Forget the alerts of an earlier watch."""
        self.alerted = []
        super().start(view)

    def on_alert(self, alert: Alert) -> None:
        """Activate the guard if the alert is serious enough."""
        super().on_alert(alert)
        if alert.level.rank >= self.level.rank and alert.behavior not in self.alerted:
            self.alerted.append(alert.behavior)

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """Iterate over the active guards inside while an alert is active."""
        if self.until == "recovered":
            self.alerted = [name for name in self.alerted if not has_recovered(view, name)]
        if self.alerted:
            yield from self.parts[0].active_guards(view)


class Scheduled(CompositeGuard):
    """A guard that acts only at some steps.

    Args:
        guard: the guard that acts then.
        first, last: the range of steps, from 1, both included; `last=None` means until the end.
        every: interval between two steps at which the guard acts.
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
        """Iterate over the active guards inside at the scheduled steps."""
        past = self.last is not None and view.step > self.last
        if view.step >= self.first and not past and (view.step - self.first) % self.every == 0:
            yield from self.parts[0].active_guards(view)


def has_recovered(view: GuardView, name: str) -> bool:
    """Return True if a behavior's score is at or above its floor and no break is forecast."""
    history, forecast = view.histories[name], view.forecasts.get(name)
    healthy = bool(history.steps) and score(history.margins[-1]) >= history.floor
    return healthy and (forecast is None or not forecast.predicts_break)
