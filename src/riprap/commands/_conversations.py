"""Recognize the fields of a row, and read it as the turns of a conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from riprap.commands._files import DECODER
from riprap.commands._models import SHOWN
from riprap.errors import ConfigError

if TYPE_CHECKING:
    from riprap.commands._data import DataConfig

MESSAGES = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction", "question", "query", "user", "human")
RESPONSES = ("response", "completion", "output", "answer", "assistant", "solution")
CONTEXTS = ("input", "context", "passage")  # text that an instruction or a question is about
CHOICES = ("choices", "options")
SYSTEMS = ("system", "system_prompt")
TOOLS, HISTORY, TEMPLATE_KWARGS = "tools", "history", "chat_template_kwargs"
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "ipython"), "tool"),
    "function_call": "assistant",
}
WEIGHTS = ("weight", "loss_weight", "train")  # of OpenAI, LLaMA-Factory and Axolotl
TEXT_PARTS = ("text", "input_text", "output_text")
PLACEHOLDER = re.compile(r"\{\{ ?\w+ ?\}\}")
JOIN = "\n\n"  # between an instruction and its input

Turn = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a data set, as turns with `role` and `content`.

    Attributes:
        number: line in a JSON Lines file, or position in another data set, from 1.
        turns: as a chat template reads them.
        learned: for each turn, whether the model learns it.
        notes: what is unusual about the row, in words.
    """

    number: int
    turns: tuple[Turn, ...]
    learned: tuple[bool, ...]
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    category: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def first_learned(self) -> int:
        """Index of the first learned turn; the number of turns if there is none."""
        return next((at for at, is_learned in enumerate(self.learned) if is_learned), len(self))

    @property
    def prompt(self) -> str:
        """Text of the turn before the first learned one."""
        at = self.first_learned
        return str(self.turns[at - 1]["content"]) if at else ""

    @property
    def response(self) -> str:
        """Text of the first learned turn."""
        at = self.first_learned
        return str(self.turns[at]["content"]) if at < len(self) else ""

    def __len__(self) -> int:
        return len(self.turns)


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields that are read; a dot enters nested fields.

    Attributes:
        kind: what the rows are, in words.
        unused: other fields of the first row.
    """

    kind: str
    messages: str | None = None
    prompt: str | None = None
    context: str | None = None
    response: str | None = None
    unused: tuple[str, ...] = ()


def recognize(record: dict[str, Any], data: DataConfig, where: str) -> Fields:
    """Name the fields of a data set by its first row and the configured keys.

    Raises:
        ConfigError: no field, or more than one, can be meant.
    """
    if data.messages is not None:
        return _fields(f"messages ({data.messages!r})", record, messages=data.messages)
    named = data.prompt is not None or data.response is not None
    found = [name for name in MESSAGES if _is_list(record.get(name))]
    if found and not named:
        first = next(iter(_items(record[found[0]])), None)
        is_sharegpt = isinstance(first, dict) and "from" in first
        kind = "ShareGPT" if is_sharegpt else "messages"
        return _fields(f"{kind} ({found[0]!r})", record, messages=found[0])
    if "chosen" in record and "rejected" in record and not named:
        raise ConfigError(
            f"{where} has the fields 'chosen' and 'rejected', a preference: Riprap trains on "
            "responses; set `prompt` and `response` to train on the chosen ones"
        )
    prompt = data.prompt or _only(PROMPTS, record, "prompt", where, ("input",))
    response = data.response or _only(RESPONSES, record, "response", where)
    context = data.context
    if not named:
        context = context or next((c for c in CONTEXTS if c in record and c != prompt), None)
        if any(name in record for name in CHOICES):
            raise ConfigError(
                f"{where} has the field {next(n for n in CHOICES if n in record)!r}, a multiple "
                "choice: set `prompt` and `response` to fields with texts"
            )
    kind = "Alpaca" if (prompt, response) == ("instruction", "output") else "prompt and response"
    read = ", ".join(repr(name) for name in (prompt, context, response) if name)
    return _fields(f"{kind} ({read})", record, prompt=prompt, context=context, response=response)


def _fields(kind: str, record: dict[str, Any], **named: str | None) -> Fields:
    read = {name.split(".")[0] for name in named.values() if name} | {*named.values()}
    read |= {*SYSTEMS, TOOLS, HISTORY, TEMPLATE_KWARGS}
    return Fields(kind, **named, unused=tuple(name for name in record if name not in read))


def _only(
    names: Sequence[str], record: dict[str, Any], key: str, where: str, fallback: Sequence[str] = ()
) -> str:
    found = [name for name in names if name in record] or [n for n in fallback if n in record]
    if len(found) == 1:
        return found[0]
    known = ", ".join(map(repr, record))[:SHOWN] or "no fields"
    if found:
        both = " and ".join(map(repr, found))
        raise ConfigError(f"{where} has {both}: set `{key}` to the one that is meant")
    raise ConfigError(
        f"{where} has no field {key!r}, nor one that is read as such; set `{key}` to the one that "
        f"is meant, or `messages` to a list of turns (it has {known})"
    )


def read_row(
    number: int, record: dict[str, Any], fields: Fields, data: DataConfig, where: str
) -> Row:
    """Read a row as turns.

    Raises:
        ConfigError: a field is missing or is not a text, a role or a part is unknown, or a weight
            is neither 0 nor 1.
    """
    if fields.messages is not None:
        messages = _items(look_up(record, fields.messages, where), where, fields.messages)
        turns, weights = _turns(messages, where)
        foreign: tuple[str, ...] = ()
    else:
        turns, weights = _pair(record, fields, where)
        foreign = _foreign_roles(record, fields, where)
    turns, weights = _with_system(record, turns, weights, data, where)
    notes = foreign + _notes(turns, weights, fields.messages is not None)
    while turns and turns[-1]["role"] != "assistant":
        turns, weights = turns[:-1], weights[:-1]
    learned = tuple(
        turn["role"] == "assistant" and weight is not False
        for turn, weight in zip(turns, weights, strict=True)
    )
    for turn, is_learned in zip(turns, learned, strict=True):
        if is_learned and data.response_prefix:
            turn["content"] = data.response_prefix + turn["content"]
    tools = record.get(TOOLS) or None
    kwargs = record.get(TEMPLATE_KWARGS) or {}
    if not isinstance(kwargs, dict):
        raise ConfigError(f"{where}: field {TEMPLATE_KWARGS!r} is {_kind(kwargs)}; give a mapping")
    row_tools = None if tools is None else _items(tools, where, TOOLS)
    return Row(number, tuple(turns), learned, row_tools, kwargs, notes=notes)


def _pair(
    record: dict[str, Any], fields: Fields, where: str
) -> tuple[list[Turn], list[bool | None]]:
    assert fields.prompt is not None and fields.response is not None
    prompt, response = (look_up(record, name, where) for name in (fields.prompt, fields.response))
    if isinstance(prompt, list) and isinstance(response, list):  # TRL's conversational form
        before, _ = _turns(prompt, where)
        after, weights = _turns(response, where)
        return before + after, [False] * len(before) + weights
    text = as_text(prompt, fields.prompt, where)
    context = record.get(fields.context) if fields.context else None
    if context not in (None, ""):
        text += JOIN + as_text(context, fields.context or "", where)
    answer = as_text(response, fields.response, where)
    turns: list[Turn] = []
    for pair in _items(record.get(HISTORY) or [], where, HISTORY):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ConfigError(f"{where}: field {HISTORY!r} is no list of prompts and responses")
        for role, part in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": as_text(part, HISTORY, where)})
    turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return turns, [None] * len(turns)


def _foreign_roles(record: dict[str, Any], fields: Fields, where: str) -> tuple[str, ...]:
    """Return notes on paths into a list of turns that lead to a turn of another role."""
    notes = []
    for name, wanted, use in (
        (fields.prompt, "user", "as the prompt"),
        (fields.response, "assistant", "learned as the answer"),
    ):
        parent = "" if name is None or name in record else name.rpartition(".")[0]
        turn = look_up(record, parent, where) if parent else None
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        if isinstance(role, str) and ROLES.get(role, role) != wanted:
            advice = "remove `prompt` and `response` to learn all turns of the assistant"
            notes.append(f"with a turn of the role {role!r} {use} ({name}): {advice}")
    return tuple(notes)


def _turns(messages: list[Any], where: str) -> tuple[list[Turn], list[bool | None]]:
    turns, weights = [], []
    for at, message in enumerate(messages, 1):
        place = f"{where}, turn {at}"
        if not isinstance(message, dict):
            raise ConfigError(f"{place} is {_kind(message)}; give an object with role and content")
        message = {name: value for name, value in message.items() if value is not None}
        named = message.pop("role", None) or message.pop("from", None)
        role = ROLES.get(named) if isinstance(named, str) else None
        if role is None:
            raise ConfigError(
                f"{place} has the role {str(named)[:SHOWN]!r}; known are {', '.join(ROLES)}"
            )
        weights.append(_weight(message, role, place))
        content = message.pop("content", None)
        content = message.pop("value", None) if content is None else content
        if named == "function_call":
            message["tool_calls"] = [{"type": "function", "function": _call(content, place)}]
            content = ""
        elif "function_call" in message:  # OpenAI's former form
            call = _call(message.pop("function_call"), place)
            message["tool_calls"] = [{"type": "function", "function": call}]
        for call in message.get("tool_calls") or ():
            if isinstance(call, dict) and isinstance(call.get("function"), dict):
                call["function"] = _call(call["function"], place)
        if content is None and message.get("tool_calls"):
            content = ""
        turns.append({"role": role, "content": _content(content, place), **message})
    return turns, weights


def _content(content: Any, place: str) -> str:
    """Return a text, or the texts of a list of parts joined."""
    if not isinstance(content, list):
        return as_text(content, "content", place)
    texts = []
    for part in content:
        if isinstance(part, dict):
            kind = part.get("type", "text")
            if kind not in TEXT_PARTS:
                raise ConfigError(
                    f"{place} has a part of type {str(kind)[:SHOWN]!r}; only texts are trained"
                )
            part = next((part[k] for k in ("text", "value", "content") if part.get(k)), "")
        texts.append(as_text(part, "content", place))
    return "".join(texts)


def _weight(message: dict[str, Any], role: str, place: str) -> bool | None:
    """Take the weight out of a message: whether it is learned; None if it does not say."""
    found = {name: message.pop(name) for name in WEIGHTS if name in message}
    for name, value in found.items():
        if value not in (0, 1):
            raise ConfigError(f"{place} has {name} {str(value)[:SHOWN]}; a turn counts 0 or 1")
        if value and role != "assistant":
            raise ConfigError(
                f"{place} has {name} {value} and the role {role!r}; only the turns of the "
                "assistant are learned: set it to 0"
            )
    return all(map(bool, found.values())) if found else None


def _call(call: Any, place: str) -> dict[str, Any]:
    """Return a call of a tool with its arguments as an object, as chat templates read it."""
    call = _decode(call, place) if isinstance(call, str) else call
    if not isinstance(call, dict) or "name" not in call:
        raise ConfigError(f"{place} calls a tool without a name: give `name` and `arguments`")
    arguments = call.get("arguments", {})
    arguments = _decode(arguments or "{}", place) if isinstance(arguments, str) else arguments
    return {**call, "arguments": arguments}


def _with_system(
    record: dict[str, Any],
    turns: list[Turn],
    weights: list[bool | None],
    data: DataConfig,
    where: str,
) -> tuple[list[Turn], list[bool | None]]:
    """Put the system prompt of the row, or else that of the configuration, before its turns."""
    used = (data.prompt, data.response, data.context)
    own = next((name for name in SYSTEMS if record.get(name) and name not in used), None)
    has_turn = any(turn["role"] == "system" for turn in turns)
    if own is not None and has_turn:
        raise ConfigError(f"{where} has a field {own!r} and a system turn: remove one of them")
    text = data.system if own is None else as_text(record[own], own, where)
    if text is None or has_turn:
        return turns, weights
    return [{"role": "system", "content": text}, *turns], [False, *weights]


def _notes(turns: list[Turn], weights: list[bool | None], is_conversation: bool) -> tuple[str, ...]:
    answers = [(t, w) for t, w in zip(turns, weights, strict=True) if t["role"] == "assistant"]
    learned = [turn for turn, weight in answers if weight is not False]
    cases = {
        "with a system prompt": any(turn["role"] == "system" for turn in turns),
        "without a turn of the assistant, left out": not answers,
        "with weight 0 on every answer, left out": bool(answers) and not learned,
        "with weight 0 on some answers, which are not learned": 0 < len(learned) < len(answers),
        "without a turn of the user": all(turn["role"] != "user" for turn in turns),
        "with an empty answer: the model learns to end its turn at once": any(
            not turn["content"].strip() and not turn.get("tool_calls") for turn in learned
        ),
        "with an open placeholder in an answer, such as {{name}}": any(
            PLACEHOLDER.search(turn["content"]) for turn in learned
        ),
        "with calls of tools": any(turn.get("tool_calls") for turn in turns),
        "with a turn after the last answer, which is cut off": bool(answers)
        and turns[-1]["role"] != "assistant",
        "of more than one answer": is_conversation and len(answers) > 1,
    }
    return tuple(note for note, is_true in cases.items() if is_true)


def look_up(record: dict[str, Any], field: str, where: str) -> Any:
    """Return the value of a field; a dot enters nested fields."""
    if field in record:
        return record[field]
    value: Any = record
    for part in field.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            known = ", ".join(record)[:SHOWN]
            raise ConfigError(f"{where} has no field {field[:SHOWN]!r}; it has {known}") from error
    return value


def as_text(value: Any, field: str, where: str) -> str:
    """Return a text, or a number or truth value in its written form."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = getattr(value, "written", value)
    if isinstance(text, str):
        return text
    missing = "missing (null or an empty cell)" if value is None else _kind(value)
    raise ConfigError(f"{where}: field {field[:SHOWN]!r} is {missing}; give a text")


def _kind(value: Any) -> str:
    return "not a number" if isinstance(value, float) else type(value).__name__


def _is_list(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _items(value: Any, where: str = "", field: str = "") -> list[Any]:
    """Return a list; a text is read as JSON, as in a column of a table."""
    value = _decode(value, where) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise ConfigError(f"{where}: field {field[:SHOWN]!r} is {_kind(value)}; give a list")
    return value


def _decode(text: str, where: str) -> Any:
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} has a text that is not JSON: {str(error)[:SHOWN]}") from error
