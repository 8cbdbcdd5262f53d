"""Tokenize conversations by the chat template, with the loss on the turns of the assistant.

`riprap watch` trains on these tokens and labels, `riprap select` scores them, and both show one
row. A row with one answer is as TRL's SFTTrainer makes it (`tests/commands/test_select_exact.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from jinja2 import TemplateError
from rich.console import Console
from rich.text import Text
from torch import Tensor
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.data_utils import common_prefix_length

from riprap._text import escape_control_chars, first_line
from riprap.commands._conversations import Row, Turn
from riprap.commands._models import SHOWN
from riprap.errors import ConfigError
from riprap.selection import IGNORE_INDEX

TEMPLATE_ERRORS = (AttributeError, LookupError, TypeError, ValueError, TemplateError)
MAX_SEGMENT = 600  # characters of one stretch of a row that is shown


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Tokens of a row, and their labels (−100: not learned)."""

    ids: list[int]
    labels: list[int]
    cut: bool  # the row was longer and was truncated

    @property
    def is_learned(self) -> bool:
        """True if a token is learned; no token is predicted before the first one."""
        return any(label != IGNORE_INDEX for label in self.labels[1:])


class _NotAPrefixError(Exception):
    """An earlier turn is rendered differently once later turns follow."""


class Encoder:
    """Chat template, labels on the turns of the assistant, and truncation at the end.

    A turn begins where the rendered turns before it end, and ends where they end together with it;
    each beginning is verified to be a prefix of the whole. If the template has `{% generation %}`
    markers, only what is between them is learned. Where a beginning is no prefix, the markers
    alone are used, those of TRL's training template if the model's own has none.

    Args:
        max_length: tokens of a row; None: rows are not truncated.
        template_kwargs: arguments of the chat template.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "the model's tokenizer has no chat template, which is needed to join a prompt and "
                "its response: give an instruct model"
            )
        self._tokenizer, self._max_length = tokenizer, max_length
        self._kwargs = template_kwargs or {}
        self._has_markers = has_generation_markers(tokenizer.chat_template)
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = next(token for token in candidates if token is not None)

    def encode(self, row: Row) -> EncodedRow:
        """Tokenize a row; raise a ConfigError if the chat template refuses it."""
        options = {**self._kwargs, **row.template_kwargs, "tools": row.tools}
        turns = list(row.turns)
        if not any(row.learned):
            return EncodedRow([self._pad], [IGNORE_INDEX], False)
        try:
            ids, learned = self._encode(turns, row.learned, options)
        except _NotAPrefixError as error:
            raise ConfigError(
                f"row {row.number}: the chat template renders turn {error} differently once later "
                "turns follow, so it is not known which tokens are the model's: mark them in the "
                "template by {% generation %}, or give rows with one answer"
            ) from error
        except TEMPLATE_ERRORS as error:
            why = first_line(error, type(error).__name__)[:SHOWN]
            raise ConfigError(f"row {row.number} cannot be encoded: {why}") from error
        labels = [token if yes else IGNORE_INDEX for token, yes in zip(ids, learned, strict=True)]
        n = len(ids) if self._max_length is None else self._max_length
        return EncodedRow(ids[:n], labels[:n], len(ids) > n)

    def _encode(
        self, turns: list[Turn], learned: Sequence[bool], options: dict[str, Any]
    ) -> tuple[list[int], list[bool]]:
        try:
            ids, mask = self._by_prefixes(turns, learned, options)
        except _NotAPrefixError:
            template = None if self._has_markers else self._training_template()
            if template is None and not self._has_markers:
                raise
            own = options if template is None else {**options, "chat_template": template}
            found = self._by_markers(turns, learned, own)
            if found is None:
                raise
            return found
        if self._has_markers:
            marked = self._marked(turns, options)[1]
            both = [one and other for one, other in zip(mask, marked, strict=True)]
            mask = both if any(both) else mask
        return ids, mask

    def _training_template(self) -> str | None:
        try:
            return get_training_chat_template(self._tokenizer)
        except (ValueError, TemplateError):  # TRL knows no such template
            return None

    def _marked(self, turns: list[Turn], options: dict[str, Any]) -> tuple[list[int], list[bool]]:
        """Return the tokens, and which of them are between the markers of the template.

        A marker that ends with a space that no token covers marks all that follows.
        """
        found = self._apply(turns, return_assistant_tokens_mask=True, **options)
        return list(found["input_ids"]), [bool(bit) for bit in found["assistant_masks"]]

    def _by_markers(
        self, turns: list[Turn], learned: Sequence[bool], options: dict[str, Any]
    ) -> tuple[list[int], list[bool]] | None:
        """Read the marked tokens; None if they are not one stretch for each answer."""
        ids, mask = self._marked(turns, options)
        answers = [
            yes for turn, yes in zip(turns, learned, strict=True) if turn["role"] == "assistant"
        ]
        spans = [(marked, len(list(run))) for marked, run in groupby(mask)]
        if sum(marked for marked, _ in spans) != len(answers):
            return None
        kept, order = [], iter(answers)
        for marked, length in spans:
            kept += [marked and next(order)] * length
        return ids, kept

    def _by_prefixes(
        self, turns: list[Turn], learned: Sequence[bool], options: dict[str, Any]
    ) -> tuple[list[int], list[bool]]:
        ids = self._ids(turns, options)
        mask = [False] * len(ids)
        for at, is_learned in enumerate(learned):
            if is_learned:
                start = self._start(turns, at, ids, options)
                end = self._end(turns, at, ids, options)
                mask[start:end] = [True] * (end - start)
        return ids, mask

    def _start(self, turns: list[Turn], at: int, ids: list[int], options: dict[str, Any]) -> int:
        """Return the index of the first token of a turn.

        The prompt before a turn may end otherwise than the whole, as with a thought that is opened;
        the turn then begins at the first difference, which must lie behind the turn before.
        """
        if at == 0:
            return self._start_of_all(turns, ids, options)
        before = self._ids(turns[:at], options, add_generation_prompt=True)
        shared = common_prefix_length(before, ids)
        if shared < len(before):
            text = self._text(turns, options)
            prompt = self._text(turns[:at], options, add_generation_prompt=True)
            if not text.startswith(prompt) and not text.startswith(self._text(turns[:at], options)):
                raise _NotAPrefixError(at)
        return shared

    def _start_of_all(self, turns: list[Turn], ids: list[int], options: dict[str, Any]) -> int:
        """Return where the first turn begins if it is an answer: few templates render no turn."""
        other = [{**turns[0], "content": turns[0]["content"] + "."}, *turns[1:]]
        empty = [{**turns[0], "content": ""}, *turns[1:]]
        changed = (self._ids(turns_, options) for turns_ in (other, empty))
        return min(common_prefix_length(ids, other_ids) for other_ids in changed)

    def _end(self, turns: list[Turn], at: int, ids: list[int], options: dict[str, Any]) -> int:
        if at == len(turns) - 1:
            return len(ids)
        through = self._ids(turns[: at + 1], options)
        shared = common_prefix_length(through, ids)
        if shared < len(through):
            text, part = self._text(turns, options), self._text(turns[: at + 1], options)
            if not text.startswith(part):
                raise _NotAPrefixError(at + 1)
        return shared

    def _ids(self, turns: list[Turn], options: dict[str, Any], **more: Any) -> list[int]:
        return list(self._apply(turns, **options, **more)["input_ids"])

    def _text(self, turns: list[Turn], options: dict[str, Any], **more: Any) -> str:
        options = {**options, **more, "tokenize": False}
        return str(self._tokenizer.apply_chat_template(turns, **options))

    def _apply(self, turns: list[Turn], **options: Any) -> Any:
        options |= {"tokenize": True, "return_dict": True}
        return self._tokenizer.apply_chat_template(turns, **options)

    def batch(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels`, padded on the right, shape (rows, longest)."""
        longest = max(1, *(len(row.ids) for row in rows))

        def pad(values: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

        return {
            "input_ids": pad([row.ids for row in rows], self._pad),
            "attention_mask": pad([[1] * len(row.ids) for row in rows], 0),
            "labels": pad([row.labels for row in rows], IGNORE_INDEX),
        }


@dataclass
class EncodedRows:
    """Rows as SFTTrainer takes them, with what is left out.

    Attributes:
        rows: rows with tokens that are learned.
        notes: number of rows by what truncation or the chat template did to them.
        shown: the first row, as stretches of text and whether they are learned.
    """

    rows: list[EncodedRow]
    notes: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[str, bool]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the notes as sentences without a stop, one per line."""
        return [f"{count:,} rows {note}" for note, count in self.notes.items()]

    def dataset(self) -> Any:
        """Return a data set with `input_ids` and `labels`, which SFTTrainer leaves as they are."""
        import datasets

        columns = {"input_ids": [r.ids for r in self.rows], "labels": [r.labels for r in self.rows]}
        return datasets.Dataset.from_dict(columns)


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Any,
    max_length: int | None,
    template_kwargs: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedRows:
    """Tokenize rows, and count what truncation and the chat template leave out.

    Raises:
        ConfigError: the template refuses a row, or no row has a learned token left.
    """
    encoder, found = Encoder(tokenizer, None, template_kwargs), EncodedRows([])
    for done, row in enumerate(rows, 1):
        encoded = encoder.encode(row)
        text = tokenizer.decode(encoded.ids)
        found.notes.update(_missing_turns(row, text))
        n = len(encoded.ids) if max_length is None else max_length
        is_cut = len(encoded.ids) > n
        kept = EncodedRow(encoded.ids[:n], encoded.labels[:n], is_cut)
        if kept.is_learned:
            found.rows.append(encoded)
            found.notes[f"longer than max_length {max_length}, which are cut"] += is_cut
            found.shown = found.shown or segments(encoded, tokenizer)
        else:
            found.notes[f"with no answer within max_length {max_length}, left out"] += 1
        progress(done, len(rows))
    found.notes = +found.notes
    if not found.rows:
        raise ConfigError(
            f"no row has a part of an answer within max_length {max_length}: raise it"
        )
    return found


def require_rows_of_tokens(rows: Sequence[EncodedRow], model: Any) -> None:
    """Check that the model has a row of its embedding for each token.

    Raises:
        ConfigError: the tokenizer has tokens that the model does not have.
    """
    known = model.get_input_embeddings().weight.shape[0]
    largest = max((token for row in rows for token in row.ids), default=0)
    if largest >= known:
        raise ConfigError(
            f"a row has the token {largest}, and the model's embedding has {known} rows: use the "
            "model's own tokenizer, or save the model after resize_token_embeddings"
        )


def _missing_turns(row: Row, text: str) -> list[str]:
    """Name the roles whose texts the chat template left out.

    Templates drop earlier thoughts on purpose.
    """
    squeezed = "".join(text.split())
    missing = set()
    for turn in row.turns:
        content = turn["content"].rpartition("</think>")[2]
        calls = [c.get("function", {}).get("name", "") for c in turn.get("tool_calls") or ()]
        if any("".join(part.split()) not in squeezed for part in (content, *calls)):
            missing.add(turn["role"])
    return [f"with a text of the role {role!r} that the chat template changes" for role in missing]


def segments(row: EncodedRow, tokenizer: Any) -> list[tuple[str, bool]]:
    """Return the text of a row in stretches that are learned (True) or only read (False)."""
    pairs = zip(row.ids, row.labels, strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX)
    return [
        (str(tokenizer.decode([token for token, _ in run])), is_learned) for is_learned, run in runs
    ]


def print_data(
    path: str, notes: Sequence[str], shown: Sequence[tuple[str, bool]], console: Console
) -> None:
    """Print what the data are, what is left out, and one row with its loss mask.

    What is learned stands in double brackets.
    """
    console.print(f"data {escape_control_chars(path)}:", markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"- {escape_control_chars(note)}", markup=False, soft_wrap=True)
    text = Text()
    for part, is_learned in shown:
        part = shorten_segment(part)
        text.append(f"[[{part}]]" if is_learned else part, style="bold green" * is_learned)
    console.print("the first row; the model learns what stands in [[ ]]:", markup=False)
    console.print(text, soft_wrap=True)


def shorten_segment(text: str) -> str:
    """Escape a stretch of text; leave out the middle of a long one, and say how much."""
    text = escape_control_chars(text)
    if len(text) <= MAX_SEGMENT:
        return text
    half = MAX_SEGMENT // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters) … {text[-half:]}"
