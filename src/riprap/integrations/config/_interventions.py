"""Build the guard and the selector of a configuration."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from riprap import guards
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.guards import Guard, SelfDistillationBuffer
from riprap.integrations.config._schema import GuardConfig, MonitorConfig, SelectorConfig
from riprap.selection import Selector
from riprap.selection.strategies import ALL_STRATEGIES, get_strategy

REPLAYING = ("AutoGuard", "AdaptiveReplay", "Replay")  # replay half of the probes
# Arguments that are objects, so that a file cannot give them; "behaviors" are given by name.
_OBJECTS = {"batches", "replay", "loss", "sae", "earlier", "drifted_model", "guard", "parts"}
# Scores that a selector can have only of such objects.
_NOT_IN_A_FILE = {"gram": "directions", "danger": "directions", "category": "categories"}
_OBJECTS |= {"lr_scheduler", "grad_scaler", "shadow"}


@dataclass(frozen=True)
class Protection:
    """A guard, and the behaviors whose probes remain to be measured."""

    guard: Guard | None
    behaviors: list[Behavior]


def guard_names() -> list[str]:
    """Return the names of the guards that a configuration can build."""
    return sorted(name for name in guards.__all__ if _needs(name) is not None)


def _needs(name: str) -> str | None:
    """Return "probes" if a guard replays probes, "" if it needs none; None: not in a file."""
    kind = getattr(guards, name)
    if not (inspect.isclass(kind) and issubclass(kind, Guard)) or kind is Guard:
        return None
    required = [
        parameter.name
        for parameter in inspect.signature(kind.__init__).parameters.values()
        if parameter.name != "self" and parameter.default is inspect.Parameter.empty
    ]
    if name in REPLAYING:
        return "probes"
    return None if required else ""


def check_guard(config: GuardConfig, behaviors: Sequence[str]) -> None:
    """Check the name of a guard, of its arguments and of its behaviors."""
    names = guard_names()
    if config.name not in names:
        raise ConfigError(
            f"guard: there is no guard {config.name!r} for a configuration; "
            f"{_near(config.name, names)}"
        )
    known = inspect.signature(getattr(guards, config.name).__init__).parameters
    arguments = [key for key in known if key not in ("self", *_OBJECTS)]
    for key in _arguments(config):
        if key not in arguments:
            raise ConfigError(f"guard: {config.name} has no key {key!r}; {_near(key, arguments)}")
    _check_names("guard", _arguments(config).get("behaviors"), behaviors)


def _arguments(config: GuardConfig) -> dict[str, Any]:
    return dict(config.model_extra or {})


def _check_names(where: str, names: Any, behaviors: Sequence[str]) -> None:
    if names is None:
        return
    if not isinstance(names, list | tuple):
        raise ConfigError(f"{where}: behaviors is {names!r}; give a list of names")
    unknown = next((name for name in names if name not in behaviors), None)
    if unknown is not None:
        raise ConfigError(
            f"{where}: no behavior is named {unknown!r}; {_near(unknown, list(behaviors))}"
        )


def _near(name: Any, names: list[str]) -> str:
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}"


def build_guard(config: MonitorConfig, behaviors: list[Behavior]) -> Protection:
    """Build the guard; one that replays gets half of the probes, and the other half is measured."""
    if config.guard is None:
        return Protection(None, behaviors)
    arguments, name = _arguments(config.guard), config.guard.name
    chosen = arguments.get("behaviors") or [behavior.name for behavior in behaviors]
    if _needs(name) == "probes":
        pairs = {b.name: _halves(b) for b in behaviors if b.name in chosen}
        buffer = SelfDistillationBuffer([replayed for _, replayed in pairs.values()])
        arguments["replay" if name == "AutoGuard" else "batches"] = buffer
        behaviors = [pairs[b.name][0] if b.name in pairs else b for b in behaviors]
    try:
        return Protection(getattr(guards, name)(**arguments), behaviors)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"guard: {name} cannot be made: {error}") from error


def _halves(behavior: Behavior) -> tuple[Behavior, Behavior]:
    count = len(behavior.probes)
    if count < 2:
        raise ConfigError(
            f"behavior {behavior.name!r} has {count} probes; a guard that replays needs two: half "
            "of the probes is measured, and half is replayed"
        )
    return behavior.split(count // 2)


def check_selector(config: SelectorConfig, behaviors: Sequence[str]) -> None:
    """Check the strategy of a selector and the names of its behaviors."""
    names = [strategy.name for strategy in ALL_STRATEGIES]
    if unknown := [name for name in config.strategy.split(":") if name not in names]:
        raise ConfigError(
            f"selector: there is no strategy {unknown[0]!r}; {_near(unknown[0], names)}"
        )
    needs = get_strategy(config.strategy).all_needs
    for missing, what in _NOT_IN_A_FILE.items():
        if missing in needs:
            raise ConfigError(
                f"selector: {config.strategy} needs {what}, which a file cannot give: use "
                "riprap.selection.Selector in Python"
            )
    _check_names("selector", config.behaviors, behaviors)


def build_selector(
    selector: SelectorConfig | None, behaviors: Sequence[Behavior], log: Any
) -> Selector | None:
    """Build the selector; None if all rows are learned."""
    if selector is None:
        return None
    names = selector.behaviors or [behavior.name for behavior in behaviors]
    protects = bool(get_strategy(selector.strategy).all_needs & {"harm", "margin_spent"})
    return Selector(
        selector.strategy,
        selector.ratio,
        behaviors=[b for b in behaviors if b.name in names] if protects else (),
        probe_every=selector.probe_every,
        log=log,
        seed=selector.seed,
    )
