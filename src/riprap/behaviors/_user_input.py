"""Texts and tokenizers from users, checked: what is wrong is said in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from riprap.errors import BehaviorError


def require_tokenizer(tokenizer: Any) -> None:
    """Refuse what is no tokenizer, and say what it is."""
    kind = type(tokenizer).__name__
    if tokenizer is None or isinstance(tokenizer, str):
        what = "None" if tokenizer is None else f"the text {tokenizer[:80]!r}"
        raise BehaviorError(
            f"the tokenizer is {what}; give the model's tokenizer, as "
            "AutoTokenizer.from_pretrained(...) returns it"
        )
    if isinstance(tokenizer, nn.Module):
        raise BehaviorError(f"the tokenizer is a model ({kind}); give the model's tokenizer")
    if hasattr(tokenizer, "image_processor") and hasattr(tokenizer, "tokenizer"):
        raise BehaviorError(f"the tokenizer is a {kind}; give its `.tokenizer`")
    if not callable(tokenizer):
        raise BehaviorError(
            f"the tokenizer is a {kind}, which cannot be called on a text; give the model's "
            "tokenizer"
        )


def parse_list(values: Any, what: str) -> list[Any]:
    """Return values as a list; refuse a single text, which would be read as its characters."""
    if isinstance(values, str):
        raise BehaviorError(f"{what} must be a list of texts, got one text; give [{values[:40]!r}]")
    if isinstance(values, (bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise BehaviorError(f"{what} must be a list, got {type(values).__name__}")
    return list(values)


def parse_texts(texts: Any, what: str, one: str, of: str = "") -> list[str]:
    """Return texts as a list; refuse what is no list, or has an item that is no text."""
    parsed = parse_list(texts, what)
    for index, text in enumerate(parsed):
        if not isinstance(text, str):
            raise BehaviorError(f"{one} {index}{of} is {_describe(text)}; give a text")
    return parsed


def parse_prompts(prompts: Any) -> list[Any]:
    """Return prompts as a list of texts and conversations; refuse anything else."""
    parsed = parse_list(prompts, "prompts")
    if not parsed:
        raise BehaviorError("there are no prompts; give at least one")
    for index, prompt in enumerate(parsed):
        if isinstance(prompt, Mapping):
            raise BehaviorError(
                f"prompt {index} is a turn of a conversation; give each conversation as a list of "
                "its turns"
            )
        if isinstance(prompt, str):
            if not prompt.strip():
                raise BehaviorError(f"prompt {index} is empty; every probe needs some text")
        elif not isinstance(prompt, (list, tuple)):
            raise BehaviorError(
                f"prompt {index} is {_describe(prompt)}; give a text or a conversation"
            )
        elif not prompt:
            raise BehaviorError(f"prompt {index} is empty; every probe needs some text")
        elif not all(
            isinstance(turn, Mapping) and {"role", "content"} <= {*turn} for turn in prompt
        ):
            raise BehaviorError(
                f"prompt {index} is a list, but not of turns with `role` and `content`; give a "
                "text or a conversation"
            )
    return parsed


def prompt_text(prompt: Any) -> str:
    """Return a prompt as text; of a conversation, its last turn."""
    content = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return " ".join(str(p.get("text", "")) if isinstance(p, Mapping) else str(p) for p in parts)


def _describe(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
