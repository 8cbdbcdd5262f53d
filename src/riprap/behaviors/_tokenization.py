"""Token ids of prompts and continuations, as the model sees them in use."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from riprap.behaviors._token_ids import parse_token_rows
from riprap.errors import BehaviorError

MAX_PREFIX_TOKENS = 8  # tell any beginning apart, also where a character takes three tokens
Prompt = str | list[dict[str, str]]  # a user's request, or a conversation that ends with one


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the token ids of each prompt, up to the first position of the response.

    A tokenizer with a chat template applies it, with the generation prompt; any other encodes the
    plain text.

    Raises:
        BehaviorError: there are no prompts, one is empty, or one is a conversation and the
            tokenizer has no chat template.
    """
    if not prompts:
        raise BehaviorError("there are no prompts; give at least one")
    _require_list(prompts, "prompts")
    rows = []
    for index, prompt in enumerate(prompts):
        with _wrap_tokenizer_errors(f"prompt {index}"):
            rows.append(_encode(tokenizer, prompt, index))
    return rows


def _require_list(texts: Any, what: str) -> None:
    """Refuse a single text, which would be read as a list of characters."""
    if isinstance(texts, str):
        raise BehaviorError(f"{what} must be a list of texts, got one text; give [{texts[:40]!r}]")


@contextmanager
def _wrap_tokenizer_errors(what: str) -> Iterator[None]:
    """Name the text that a tokenizer or chat template cannot encode; their errors do not."""
    try:
        yield
    except Exception as error:
        jinja2 = sys.modules.get("jinja2")  # imported if transformers applied a chat template
        own = () if jinja2 is None else (jinja2.TemplateError,)
        if not isinstance(error, (AttributeError, LookupError, TypeError, ValueError, *own)):
            raise
        raise BehaviorError(f"{what} cannot be encoded: {error}") from error


def _encode(tokenizer: Any, prompt: Prompt, index: int) -> list[int]:
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise BehaviorError(f"prompt {index} is empty; every probe needs some text")
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return list(tokenizer.apply_chat_template(turns, **options))
    if not isinstance(prompt, str):
        raise BehaviorError(
            f"prompt {index} is a conversation, but the tokenizer has no chat template; give text"
        )
    return list(tokenizer(prompt)["input_ids"])


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, at least two, with the tokenizer's special tokens."""
    if not texts:
        raise BehaviorError("there are no texts; give at least one")
    _require_list(texts, "texts")
    rows = []
    for index, text in enumerate(texts):
        with _wrap_tokenizer_errors(f"text {index}"):
            rows.append(list(tokenizer(text)["input_ids"]))
        if len(rows[-1]) < 2:
            raise BehaviorError(f"text {text!r} has fewer than two tokens; give a longer one")
    return rows


def encode_continuations(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each continuation, without special tokens.

    Raises:
        BehaviorError: a continuation is empty.
    """
    _require_list(texts, "continuations")
    rows = []
    for text in texts:
        with _wrap_tokenizer_errors(f"continuation {text!r}"):
            rows.append(list(tokenizer(text, add_special_tokens=False)["input_ids"]))
        if not rows[-1]:
            raise BehaviorError(f"continuation {text!r} has no tokens; give some text")
    return rows


def encode_prefixes(
    tokenizer: Any, prefixes: Sequence[str | int | Sequence[int]]
) -> list[tuple[int, ...]]:
    """Return the token ids of response prefixes, at most `MAX_PREFIX_TOKENS` of each.

    A text also counts with the other apostrophe (' or ’), and, where there is no chat template,
    after a space. Token ids are returned unchanged.

    Raises:
        BehaviorError: there are no prefixes, or one has no tokens.
    """
    if not prefixes:
        raise BehaviorError("there are no prefixes; give at least one response prefix")
    _require_list(prefixes, "prefixes")
    texts = [variant for p in prefixes if isinstance(p, str) for variant in _spellings(p)]
    if not getattr(tokenizer, "chat_template", None):
        texts += [f" {text}" for text in texts if text[:1].strip()]
    given = [[p] if isinstance(p, int) else p for p in prefixes if not isinstance(p, str)]
    ids = parse_token_rows(given, "prefix")
    if [] in ids:
        raise BehaviorError("a prefix of token ids is empty; give at least one token")
    rows = [row[:MAX_PREFIX_TOKENS] for row in encode_continuations(tokenizer, texts)]
    return sorted({tuple(row) for row in [*rows, *ids]})


def _spellings(text: str) -> list[str]:
    """Return a text with straight and with typographic apostrophes; the text itself if it has none.

    An empty text is returned, too: it is refused where it is encoded.
    """
    straight = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return list(dict.fromkeys([straight, straight.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")]))
