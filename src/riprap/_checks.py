"""Checks of arguments that many public names share: each error is one sentence."""

from __future__ import annotations

import functools
import inspect
from abc import ABCMeta
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from riprap._text import shorten
from riprap.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")


def shown(thing: Any) -> str:
    """Show a short text or a number as it is, and of anything else only the type."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if isinstance(thing, str | int | float):
        return repr(shorten(thing) if isinstance(thing, str) else thing)
    return "None" if thing is None else f"a {type(thing).__name__}"


def check_count(name: str, value: Any, least: int = 1, otherwise: str = "") -> None:
    """Check a number of things.

    Args:
        otherwise: what else may be given: ", or None for all".

    Raises:
        ConfigError: it is no whole number, or under `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(
            f"{name}={shown(value)}: give a whole number of at least {least}{otherwise}"
        )


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_names(
    function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Check the names and the number of the arguments of a call; return the arguments by name.

    Args:
        args: without `self`.

    Raises:
        ConfigError: one is missing or unknown.
    """
    signature = _signature(function)
    try:
        return signature.bind(*args, **options).arguments
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise ConfigError(f"{_name(function)}: {error}; it takes {takes}") from error


def check_call(
    function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Check the same, and that numbers, texts, models and behaviors are what annotations ask for.

    Raises:
        ConfigError: one is missing, unknown or something else.
    """
    parameters = _signature(function).parameters
    for key, value in check_names(function, args, options).items():
        kinds = _kinds(parameters[key].annotation)
        if parameters[key].kind in _SINGLE and kinds and not any(_IS[own](value) for own in kinds):
            right = " or ".join(_NOUNS[kind] for kind in kinds)
            text = f"{_name(function)}({key}={shown(value)}): give {right}"
            if not isinstance(value, str | int | float):  # perhaps it was meant for another one
                text += f"; it takes {', '.join(parameters)}"
            raise ConfigError(text)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that wrong arguments are refused in one sentence; see `check_call`."""
    return _after(check_call, function)


def named(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that checks values by itself; see `check_names`."""
    return _after(check_names, function)


def _after(check: Callable[..., object], function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        is_method = not _BOUND.isdisjoint(inspect.signature(function).parameters)
        check(function, args[1:] if is_method else args, options)
        return function(*args, **options)

    return call


class NamedCall(ABCMeta):
    """Metaclass of classes that check values by themselves; see `check_names`.

    A class may also derive from `ABC`.
    """

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """Make an instance."""
        check_names(cls.__init__, args, options)  # type: ignore[misc]
        return super().__call__(*args, **options)

    @property
    def __signature__(cls) -> inspect.Signature:
        return _signature(cls.__init__)  # type: ignore[misc]


class CheckedCall(NamedCall):
    """Metaclass of classes whose wrong arguments are refused in one sentence; see `check_call`."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """Make an instance."""
        check_call(cls.__init__, args, options)  # type: ignore[misc]
        return super().__call__(*args, **options)


def _name(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__")


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    own = [p for name, p in signature.parameters.items() if name not in _BOUND]
    return signature.replace(parameters=own)


def _kinds(annotation: Any) -> list[str]:
    """Return the parts of an annotation such as "float | None"; empty if one is anything else."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    parts = [part.strip() for part in text.split("|")]
    return parts if all(part in _IS for part in parts) else []


def _is_a(value: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(value).__mro__)


_BOUND = frozenset({"self", "cls"})
_SINGLE = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_NOUNS = {"float": "a number", "int": "a whole number", "str": "a text", "bool": "True or False"}
_NOUNS |= {"nn.Module": "a torch.nn.Module", "Behavior": "a riprap.Behavior", "None": "None"}
_IS: dict[str, Callable[[Any], bool]] = {
    "float": is_number,
    "int": lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: _is_a(value, "bool") or _is_a(value, "bool_"),
    "nn.Module": lambda value: _is_a(value, "Module"),
    "Behavior": lambda value: _is_a(value, "Behavior"),
    "None": lambda value: value is None,
}
