"""The protocol of judges: that of the package judgezoo, so that its judges and ours take turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from riprap._extras import is_installed
from riprap._text import error_text, shorten
from riprap.errors import ConfigError

Conversation = Sequence[Mapping[str, str]]  # turns with `role` and `content`
Judgments = dict[str, list[Any]]
AnyJudge = Callable[[list[Any]], Mapping[str, Any]]  # of the protocol, ours or judgezoo's


_JUDGES: dict[str, Callable[..., AnyJudge]] = {}
ELSEWHERE = "judgezoo:"


class Judge(ABC):
    """A judge of conversations: whether the answer at the end of each is harmful.

    `judge(conversations)` returns a dict with `p_harmful`, a number in [0, 1] for each
    conversation, or None where the judge could not say. Judges of refusals take an answer for
    harmful that does not refuse, which holds for harmful requests only.
    """

    name = "judge"
    judges_refusals = False  # whether it takes every answer that does not refuse for harmful

    @staticmethod
    def from_name(name: str, **options: Any) -> AnyJudge:
        """Make a judge by its name; see `judge_names`.

        Args:
            name: one of ours, or `judgezoo:NAME` for one of the package judgezoo.
            options: of the judge's class.

        Raises:
            ConfigError: there is no such judge, or it cannot be made.
        """
        return make_judge(name, options)

    @abstractmethod
    def judge(self, conversations: list[list[dict[str, str]]]) -> Judgments:
        """Judge checked conversations, at least one."""

    def __call__(self, conversations: Sequence[Conversation], verbose: bool = False) -> Judgments:
        """Judge conversations.

        Args:
            verbose: part of the protocol; our judges print nothing.

        Raises:
            ConfigError: a conversation does not begin with a user and end with the assistant.
        """
        checked = [_checked(turns, at) for at, turns in enumerate(conversations)]
        return self.judge(checked) if checked else {"p_harmful": []}


def _checked(turns: Any, at: int) -> list[dict[str, str]]:
    right = "give turns of role and content, from a user's to the assistant's answer"
    if isinstance(turns, str | Mapping) or not isinstance(turns, Sequence) or len(turns) < 2:
        raise ConfigError(f"conversation {at} has fewer than two turns: {right}")
    checked = []
    for turn in turns:
        known = isinstance(turn, Mapping) and {"role", "content"} <= set(turn)
        if not known or not isinstance(turn["content"], str):
            raise ConfigError(f"conversation {at} has a turn without role and text: {right}")
        checked.append({"role": str(turn["role"]), "content": turn["content"]})
    if checked[-1]["role"] != "assistant" or not any(t["role"] == "user" for t in checked[:-1]):
        raise ConfigError(f"conversation {at} does not end with an answer to a user: {right}")
    return checked


def conversation(request: str, answer: str) -> list[dict[str, str]]:
    """Return a request and its answer as a conversation."""
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def last_request(turns: Conversation) -> str:
    """Return the last thing that the user said."""
    return next(turn["content"] for turn in reversed(turns) if turn["role"] == "user")


def judge_answers(
    judge: AnyJudge, requests: Sequence[str], answers: Sequence[str]
) -> list[float | None]:
    """Return `p_harmful` of each answer, by any judge of the protocol.

    Raises:
        ConfigError: the judge returns something else, or fails.
    """
    name = judge_name(judge)
    chats = [conversation(a, b) for a, b in zip(requests, answers, strict=True)]
    if not chats:
        return []
    try:
        found = judge(chats)
    except ConfigError:
        raise
    except Exception as error:
        text = shorten(error_text(error))
        raise ConfigError(f"the judge {name} failed on {len(chats)} answers: {text}") from error
    scores = found.get("p_harmful") if isinstance(found, Mapping) else None
    if not isinstance(scores, list) or len(scores) != len(chats):
        raise ConfigError(
            f"the judge {name} returned no `p_harmful` for each of {len(chats)} conversations, "
            "which the protocol of judgezoo wants"
        )
    wrong = [s for s in scores if s is not None and not (_is_number(s) and 0 <= s <= 1)]
    if wrong:
        shown = shorten(repr(wrong[0]))
        raise ConfigError(f"the judge {name} returned p_harmful={shown}: it is a number in 0 to 1")
    return [None if score is None else float(score) for score in scores]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def judge_name(judge: AnyJudge) -> str:
    """Return the name of a judge, for tables."""
    return str(getattr(judge, "name", type(judge).__name__))


def register(judges: Mapping[str, Callable[..., AnyJudge]]) -> None:
    """Offer judges by name."""
    _JUDGES.update(judges)


def judge_names() -> list[str]:
    """Return the names of our own judges."""
    return list(_JUDGES)


def make_judge(name: str, options: dict[str, Any]) -> AnyJudge:
    """Make a judge; see `Judge.from_name`."""
    if name.startswith(ELSEWHERE):
        return _elsewhere(name, options)
    if name not in _JUDGES:
        raise ConfigError(
            f"there is no judge {shorten(name)!r}: choose one of {', '.join(_JUDGES)}, or "
            f"{ELSEWHERE}NAME"
        )
    try:
        return _JUDGES[name](**options)
    except TypeError as error:
        raise ConfigError(f"the judge {name} cannot be made: {error}") from error


def _elsewhere(name: str, options: dict[str, Any]) -> AnyJudge:
    if not is_installed("judgezoo"):
        raise ConfigError(f"{name} needs judgezoo: run pip install judgezoo")
    from judgezoo import Judge as Theirs

    try:
        found: Any = Theirs.from_name(name.removeprefix(ELSEWHERE), **options)
    except Exception as error:
        text = shorten(error_text(error).partition("\n")[0])
        raise ConfigError(f"the judge {name} cannot be made: {text}") from error
    found.name = name
    return found  # type: ignore[no-any-return]
