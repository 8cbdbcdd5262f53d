"""The state of a monitor between two processes: what a run that is taken up again needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._state_schema import Shape
from riprap.signals import Signal

FORMAT = 1


def check_state(state: dict[str, Any], **mine: Any) -> None:
    """Whether a state belongs to this monitor.

    Args:
        mine: what must be the same in both, such as the names of the behaviours.

    Raises:
        ConfigError: it is no state, one of another format, or of another monitor.
    """
    if not isinstance(state, dict) or "format" not in state:
        raise ConfigError("this is not a monitor's state: give what Monitor.state_dict() gave")
    if state["format"] != FORMAT:
        raise ConfigError(f"the state has format {state['format']!r}; this Riprap reads {FORMAT}")
    Shape.parse(state, "the monitor's state")
    for what, own in mine.items():
        if state[what] != own:
            raise ConfigError(
                f"the state is of a monitor with {what} {state[what]!r}, and this one has {own!r}: "
                "make the monitor as it was made before"
            )


def behaviors_state(behaviors: Sequence[Behavior]) -> dict[str, Any]:
    """What behaviours fixed at the start; None for those that cannot say."""
    return {behavior.name: behavior.margins.state_dict() for behavior in behaviors}


def load_behaviors(visitor: ProbeRunner, states: dict[str, Any]) -> None:
    """Give behaviours back what they fixed at the start."""
    for behavior in visitor.behaviors:
        state = states[behavior.name]
        if state is not None:
            with wrap_state_errors(f"behaviour {behavior.name!r}"):
                behavior.margins.load_state_dict(state)
        else:
            warnings.warn(
                f"riprap: behaviour {behavior.name!r} fixes something at the start, but its "
                "margins have no state_dict(): it is measured against the model as it is now",
                stacklevel=4,
            )
            probing.calibrate(behavior, visitor.model)


def signals_state(signals: Sequence[Signal]) -> dict[str, Any]:
    """What signals compare later readings with."""
    return {signal.name: signal.state_dict() for signal in signals}


def load_signals(
    signals: Sequence[Signal], states: dict[str, Any], parameters: list[Tensor]
) -> None:
    """Give signals back what they compare later readings with, on the model's device."""
    for signal in signals:
        with wrap_state_errors(f"signal {signal.name!r}"):
            moved = _to_device(states[signal.name], parameters[0].device)
            signal.load_state_dict(moved, parameters)


@contextmanager
def wrap_state_errors(whose: str) -> Iterator[None]:
    """A state that its owner cannot take is refused, whatever the owner trips over.

    Raises:
        ConfigError: it is.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the monitor's state does not fit {whose} ({type(error).__name__}: {error}): begin "
            "anew without it, with a new monitor"
        ) from error


def _to_device(value: Any, device: Any) -> Any:
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to_device(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_device(part, device) for part in value)
    return value
