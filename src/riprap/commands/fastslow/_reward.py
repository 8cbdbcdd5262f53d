"""Rewards of a configuration: three that compare with the row's answer, or a function of a file."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from riprap._text import error_text
from riprap.errors import ConfigError

Reward = Callable[..., list[float | None]]
# A minus after a number is no sign: "10-5" ends with 5.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:\d+(?:\.\d+)?|\.\d+)")


def load_reward(name: str) -> Reward:
    """Return a reward by its name, or the function of `file.py:function`.

    - `exact`: 1 if the completion is the answer, up to spaces around it;
    - `contains`: 1 if the answer occurs in the completion;
    - `number`: 1 if the last number of the completion is that of the answer.

    Raises:
        ConfigError: there is no such reward, file or function.
    """
    if name in _COMPARE:
        return _comparing(name, _COMPARE[name])
    file, _, function = name.rpartition(":")
    if not file or not function:
        known = ", ".join(_COMPARE)
        raise ConfigError(f"reward {name!r}: choose one of {known}, or give file.py:function")
    path = Path(file).expanduser()
    spec = importlib.util.spec_from_file_location(f"riprap_reward_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"reward {name!r}: there is no Python file {file!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"reward {name!r}: {file} fails: {error_text(error)}") from error
    found: Any = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"reward {name!r}: {file} has no function {function!r}")
    return found  # type: ignore[no-any-return]


def reward_hash(name: str) -> str | None:
    """Return the hash of the file of a reward; None for a reward by name."""
    if name in _COMPARE:
        return None
    text = Path(name.rpartition(":")[0]).expanduser().read_bytes()
    return hashlib.sha256(text).hexdigest()[:12]


def check_answer(name: str, answer: str, where: str) -> None:
    """Refuse an answer whose reward by name would be the same for every completion.

    Raises:
        ConfigError: `number` finds no number in it, or it is empty.
    """
    equal = _COMPARE.get(name)
    if equal is not None and (not equal(answer, answer) or equal("", answer)):
        missing = "number" if name == "number" else "text"
        raise ConfigError(f"{where} has an answer without a {missing}: reward {name!r} needs one")


def _comparing(name: str, equal: Callable[[str, str], bool]) -> Reward:
    def reward(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
        texts = [turns[0]["content"] for turns in completions]
        return [float(equal(text, right)) for text, right in zip(texts, answer, strict=True)]

    reward.__name__ = name
    return reward


def _same_number(text: str, right: str) -> bool:
    said, wanted = (_NUMBER.findall(own.replace(",", "")) for own in (text, right))
    return bool(said and wanted) and float(said[-1]) == float(wanted[-1])


_COMPARE: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda text, right: text.strip() == right.strip(),
    "contains": lambda text, right: right.strip() in text,
    "number": _same_number,
}
