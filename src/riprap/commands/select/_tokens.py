"""Tokenize rows as TRL's SFTTrainer tokenizes prompt and completion, one row at a time.

`tests/commands/test_select_exact.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from riprap.commands._data import Row
from riprap.commands._models import SHOWN
from riprap.errors import ConfigError
from riprap.selection import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Tokens of a row, and their labels (−100: not learned)."""

    ids: list[int]
    labels: list[int]
    cut: bool  # the row was longer and was truncated


class Encoder:
    """Chat template, labels on the response only, and truncation at the end.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "the model's tokenizer has no chat template, which is needed to join a prompt and "
                "its response: give an instruct model"
            )
        self._tokenizer, self._max_length = tokenizer, max_length
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = next(token for token in candidates if token is not None)

    def encode(self, row: Row) -> EncodedRow:
        """Tokenize a row; raise a ConfigError if the chat template refuses it."""
        prompt_turns = [{"role": "user", "content": row.prompt}]
        all_turns = [*prompt_turns, {"role": "assistant", "content": row.response}]
        try:
            prompt = self._ids(prompt_turns, add_generation_prompt=True)
            whole = self._ids(all_turns)
        except (AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
            why = str(error)[:SHOWN]
            raise ConfigError(f"line {row.number} cannot be encoded: {why}") from error
        # The response begins at the first difference, which may lie before the prompt's end.
        pairs = zip(prompt, whole, strict=False)
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        labels = [IGNORE_INDEX] * start + whole[start:]
        n = self._max_length
        return EncodedRow(whole[:n], labels[:n], len(whole) > n)

    def _ids(self, turns: list[dict[str, str]], **options: Any) -> list[int]:
        options |= {"tokenize": True, "return_dict": True}
        return list(self._tokenizer.apply_chat_template(turns, **options)["input_ids"])

    def batch(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels`, padded on the right, shape (rows, longest)."""
        longest = max(len(row.ids) for row in rows)

        def pad(values: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

        return {
            "input_ids": pad([row.ids for row in rows], self._pad),
            "attention_mask": pad([[1] * len(row.ids) for row in rows], 0),
            "labels": pad([row.labels for row in rows], IGNORE_INDEX),
        }
