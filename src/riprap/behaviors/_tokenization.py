"""Token ids of prompts and continuations, as the model sees them in use."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from riprap.behaviors._chat_template import ChatTemplate, encode_plain, without_end
from riprap.behaviors._token_ids import parse_token_rows
from riprap.behaviors._user_input import (
    parse_list,
    parse_prompts,
    parse_texts,
    require_tokenizer,
)
from riprap.errors import BehaviorError

MAX_PREFIX_TOKENS = 8  # tell any beginning apart, also where a character takes three tokens
Prompt = str | list[dict[str, str]]  # a user's request, or a conversation that ends with one


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    system: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Return the token ids of each prompt, up to the first position of the response.

    A tokenizer with a chat template applies it, with the generation prompt; any other encodes the
    plain text. Probes stand after the thought of a reasoning template.

    Args:
        system: system message of the prompts that have none.
        chat_template_kwargs: variables of the chat template, such as `enable_thinking`.

    Raises:
        BehaviorError: there are no prompts, one is empty or neither a text nor a conversation; one
            is a conversation, or there are `system` or `chat_template_kwargs`, and the tokenizer
            has no chat template; or the template does not use them.
    """
    require_tokenizer(tokenizer)
    parsed, template = parse_prompts(prompts), None
    if getattr(tokenizer, "chat_template", None):
        template = ChatTemplate(tokenizer, system, chat_template_kwargs)
    elif system is not None or chat_template_kwargs:
        raise BehaviorError(
            "the tokenizer has no chat template, which `system` and `chat_template_kwargs` are "
            "for; leave them out"
        )
    rows = []
    for index, prompt in enumerate(parsed):
        if template is None and not isinstance(prompt, str):
            raise BehaviorError(
                f"prompt {index} is a conversation, but the tokenizer has no chat template; give "
                "text"
            )
        with _wrap_tokenizer_errors(f"prompt {index}"):
            rows.append(template.encode(prompt) if template else encode_plain(tokenizer, prompt))
    return rows


@contextmanager
def _wrap_tokenizer_errors(what: str) -> Iterator[None]:
    """Name the text that a tokenizer or chat template cannot encode; their errors do not."""
    try:
        yield
    except BehaviorError:
        raise
    except Exception as error:
        jinja2 = sys.modules.get("jinja2")  # imported if transformers applied a chat template
        own = () if jinja2 is None else (jinja2.TemplateError,)
        if not isinstance(error, (AttributeError, LookupError, TypeError, ValueError, *own)):
            raise
        raise BehaviorError(f"{what} cannot be encoded: {error}") from error


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, at least two, with what stands before every text."""
    require_tokenizer(tokenizer)
    parsed = parse_texts(texts, "texts", "text")
    if not parsed:
        raise BehaviorError("there are no texts; give at least one")
    rows = []
    for index, text in enumerate(parsed):
        with _wrap_tokenizer_errors(f"text {index}"):
            rows.append(encode_plain(tokenizer, text))
        if len(rows[-1]) < 2:
            raise BehaviorError(f"text {text!r} has fewer than two tokens; give a longer one")
    return rows


def encode_continuations(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each continuation, without special tokens.

    Raises:
        BehaviorError: a continuation is empty.
    """
    require_tokenizer(tokenizer)
    rows = []
    for text in parse_texts(texts, "continuations", "continuation"):
        with _wrap_tokenizer_errors(f"continuation {text!r}"):
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            rows.append(without_end(tokenizer, ids, text) if text.strip() else ids)
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
    parsed = parse_list(prefixes, "prefixes")
    if not parsed:
        raise BehaviorError("there are no prefixes; give at least one response prefix")
    texts = [variant for p in parsed if isinstance(p, str) for variant in _spellings(p)]
    if not getattr(tokenizer, "chat_template", None):
        texts += [f" {text}" for text in texts if text[:1].strip()]
    given = [[p] if isinstance(p, int) else p for p in parsed if not isinstance(p, str)]
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
