"""States of a monitor: checked against the monitor, moved to the model's device, restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from riprap._warnings import warn
from riprap.behaviors import device_of
from riprap.errors import ConfigError
from riprap.evaluation import calibrate
from riprap.monitor._probe_runner import ProbeRunner
from riprap.record import LOGS, check_fields
from riprap.signals import Signal

FORMAT = 5  # format 4 had no plan, and its levels did not name their alerts
_PARTS = {
    "format": int,
    "run": str,
    "monitor": dict,
    "step": int,
    "update_is_read": bool,
    "plan": dict | None,
    "position": dict,
    "parameters": list,
    "schedule": dict,
    "meter": dict,
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
        )
        calibrate(behavior, probe_runner.model)


def parameter_names(model: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    """Return the parameters' names in the model, in the order of every vector of the state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in parameters if id(parameter) in names]


def named_parameters(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """Return the parameters of these names, in their order, whatever an optimizer's order is now.

    Parameters that were watched and are frozen now are among them; those that are trained now and
    were not are taken up before their first step.

    Raises:
        ConfigError: the model has no parameter of a name.
    """
    own = dict(model.named_parameters())
    missing = [name for name in names if name not in own]
    if missing:
        raise ConfigError(
            f"the monitor's state is of a model with a parameter {missing[0]!r}, which this model "
            "does not have: resume with the model, adapter and wrappers of the saved run"
        )
    return [own[name] for name in names]


def load_signals(
    signals: Sequence[Signal], states: dict[str, Any], probe_runner: ProbeRunner
) -> None:
    """Restore the signals' states, on the model's device."""
    device = device_of(probe_runner.model)
    for signal in signals:
        with wrap_state_errors(f"signal {signal.name!r}"):
            signal.load_state_dict(_to_device(states[signal.name], device), probe_runner.parameters)


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
