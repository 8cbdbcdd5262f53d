"""Check of the behaviors that a user gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from riprap._checks import shown
from riprap._text import shorten
from riprap.behaviors._behavior import Behavior
from riprap.errors import ConfigError


def require_behaviors(given: Any, problem: str, example: str) -> list[Behavior]:
    """Return a list of behaviors, of which there is at least one.

    Args:
        problem: what cannot be done without them: "nothing to monitor".
        example: the right call with `{}` for the name of a behavior: "Monitor([{}])".

    Raises:
        ConfigError: what is wrong.
    """
    if isinstance(given, Behavior):
        name = given.name if given.name.isidentifier() else "behavior"
        raise ConfigError(f"{problem}: give a list of behaviors, as in {example.format(name)}")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(f"{problem}: give a list of behaviors, not {_article(given)}")
    behaviors = list(given)
    for behavior in behaviors:
        if not isinstance(behavior, Behavior):
            hint = "riprap.Behavior makes one"
            if isinstance(behavior, str):
                hint = f"riprap.probe_sets.load({shorten(behavior)!r}, tokenizer) makes one"
            raise ConfigError(
                f"{problem}: give a list of behaviors, and {shown(behavior)} is none; {hint}"
            )
    if not behaviors:
        raise ConfigError(f"{problem}: give at least one behavior")
    return behaviors


def _article(given: Any) -> str:
    name = "NoneType" if given is None else type(given).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
