"""States of a monitor: checked against the monitor, moved to the model's device, restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from riprap._warnings import warn
from riprap.errors import ConfigError
from riprap.evaluation import calibrate
from riprap.monitor._probe_runner import ProbeRunner
from riprap.record import LOGS, check_fields
from riprap.signals import Signal

FORMAT = 3  # format 2 did not name its run
_PARTS = {
    "format": int,
    "run": str,
    "monitor": dict,
    "step": int,
    "position": dict,
    "schedule": dict,
    "tracker": dict,
    "protected_gradients": dict,
    "behaviors": dict,
    "signals": dict,
    "guard": dict | None,
}


def check_state(state: Any, expected: dict[str, Any]) -> None:
    """Check that a state has all parts, and is of a monitor with the same arguments.

    Args:
        expected: the arguments that must be equal, by name.

    Raises:
        ConfigError: it is not a state, has another format, or is of another monitor.
    """
    if not isinstance(state, dict) or "format" not in state:
        raise ConfigError("this is not a monitor's state: give what Monitor.state_dict() returned")
    with wrap_state_errors("this monitor"):
        if state["format"] != FORMAT:
            raise ConfigError(
                f"the monitor's state has format {state['format']!r}, and this Riprap reads format "
                f"{FORMAT}: start anew without it, with a new monitor"
            )
        check_fields(state, **_PARTS)
        for name, own in expected.items():
            if name in state["monitor"] and state["monitor"][name] != own:
                raise ConfigError(
                    f"the state is of a monitor with {name}={state['monitor'][name]!r}, and this "
                    f"one has {own!r}: create the monitor with the same arguments"
                )
        check_fields(state["monitor"], **{name: type(own) for name, own in expected.items()})
        check_fields(state["position"], **dict.fromkeys(LOGS, int))
        if not all(0 <= count < 2**63 for count in (state["step"], *state["position"].values())):
            raise ValueError("a step or a position in the record is out of range")
        check_fields(state["behaviors"], **dict.fromkeys(expected["behaviors"], dict | None))
        check_fields(state["signals"], **dict.fromkeys(expected["signals"], dict))


def load_margin_states(probe_runner: ProbeRunner, states: dict[str, Any]) -> None:
    """Restore what the behaviors' margins stored at calibration."""
    for behavior in probe_runner.behaviors:
        state = states[behavior.name]
        if state is not None:
            with wrap_state_errors(f"behavior {behavior.name!r}"):
                behavior.margins.load_state_dict(state)
            continue
        warn(
            f"what the margins of behavior {behavior.name!r} stored at calibration cannot "
            "be restored, so they are calibrated on the current model: derive them from "
            "riprap.behaviors.MarginFunction with a state_dict()",
            stacklevel=5,
        )
        calibrate(behavior, probe_runner.model)


def load_signals(
    signals: Sequence[Signal], states: dict[str, Any], parameters: list[Tensor]
) -> None:
    """Restore the signals' states, on the model's device."""
    for signal in signals:
        with wrap_state_errors(f"signal {signal.name!r}"):
            state = _to_device(states[signal.name], parameters[0].device)
            signal.load_state_dict(state, parameters)


@contextmanager
def wrap_state_errors(owner: str) -> Iterator[None]:
    """Turn any error of a state that its owner cannot load into a `ConfigError`."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the monitor's state does not fit {owner} ({type(error).__name__}: {error}): start "
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
