"""From prompts to token ids, as the model will meet them in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError

from riprap.behaviors._token_ids import token_rows
from riprap.errors import BehaviorError

Prompt = str | list[dict[str, str]]  # a user's request, or a conversation that ends with it


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt, up to where the response begins.

    A tokenizer with a chat template applies it, with the generation prompt; any other encodes the
    text as it stands.

    Raises:
        BehaviorError: no prompts, an empty one, or a conversation without a chat template.
    """
    if not prompts:
        raise BehaviorError("no prompts: give at least one")
    _refuse_text(prompts, "prompts")
    rows = []
    for index, prompt in enumerate(prompts):
        with _encoding(f"prompt {index}"):
            rows.append(_encode(tokenizer, prompt, index))
    return rows


def _refuse_text(texts: Any, what: str) -> None:
    """One text in place of a list would be taken letter by letter."""
    if isinstance(texts, str):
        raise BehaviorError(f"{what} are a list of texts, and not one text: give [{texts[:40]!r}]")


@contextmanager
def _encoding(what: str) -> Iterator[None]:
    """Tokenizers and chat templates trip over odd text in many ways, and never say over which."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        raise BehaviorError(f"{what} cannot be encoded: {error}") from error


def _encode(tokenizer: Any, prompt: Prompt, index: int) -> list[int]:
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise BehaviorError(f"prompt {index} is empty: every probe needs some text")
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return list(
            tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )
    if not isinstance(prompt, str):
        raise BehaviorError(
            f"prompt {index} is a conversation, and the tokenizer has no chat template: give text"
        )
    return list(tokenizer(prompt)["input_ids"])


def encode_continuations(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each continuation, without special tokens.

    Raises:
        BehaviorError: a continuation is empty.
    """
    _refuse_text(texts, "continuations")
    rows = []
    for text in texts:
        with _encoding(f"continuation {text!r}"):
            rows.append(list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise BehaviorError(f"continuation {text!r} has no token: give some text")
    return rows


def first_tokens(tokenizer: Any, openers: Sequence[str | int]) -> list[int]:
    """The distinct first token ids of `openers`; an id passes as it is.

    Raises:
        BehaviorError: no openers.
    """
    if not openers:
        raise BehaviorError("no openers: name at least one text with which the behaviour begins")
    _refuse_text(openers, "openers")
    texts = [opener for opener in openers if isinstance(opener, str)]
    ids = token_rows([[o] for o in openers if not isinstance(o, str)], "opener")
    return sorted({row[0] for row in [*encode_continuations(tokenizer, texts), *ids]})
