"""Rows as tokens, as TRL's SFTTrainer makes them of prompt and completion, one at a time.

`tests/launch/test_select_exact.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from riprap.commands._models import SHOWN
from riprap.commands.select._jsonl import Row
from riprap.errors import ConfigError
from riprap.selection import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row's tokens, and which of them are learned (the others are −100).

    Attributes:
        cut: whether the row was longer than that.
    """

    ids: list[int]
    labels: list[int]
    cut: bool


class Encoder:
    """Chat template, labels on the response only, the end cut off.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "the model's tokenizer has no chat template, so it is not known how a prompt and "
                "its response are put together: give an instruct model"
            )
        self._tokenizer, self._most = tokenizer, max_length
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._pad = next(pad for pad in pads if pad is not None)

    def encode(self, row: Row) -> Encoded:
        """One row.

        Raises:
            ConfigError: the chat template refuses it.
        """
        asked = [{"role": "user", "content": row.prompt}]
        answered = [*asked, {"role": "assistant", "content": row.response}]
        try:
            prompt = self._ids(asked, add_generation_prompt=True)
            whole = self._ids(answered)
        except (AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
            raise ConfigError(
                f"line {row.number} cannot be encoded: {str(error)[:SHOWN]}"
            ) from error
        # The response begins where the two part, which a template may have before the prompt ends.
        pairs = zip(prompt, whole, strict=False)
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        labels = [IGNORE_INDEX] * start + whole[start:]
        return Encoded(whole[: self._most], labels[: self._most], len(whole) > self._most)

    def _ids(self, turns: list[dict[str, str]], **options: Any) -> list[int]:
        found = self._tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=True, **options
        )
        return list(found["input_ids"])

    def batch(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels`, padded on the right, shape (rows, longest)."""
        longest = max(len(row.ids) for row in rows)

        def padded(values: list[list[int]], fill: int) -> Tensor:
            return torch.tensor([own + [fill] * (longest - len(own)) for own in values])

        return {
            "input_ids": padded([row.ids for row in rows], self._pad),
            "attention_mask": padded([[1] * len(row.ids) for row in rows], 0),
            "labels": padded([row.labels for row in rows], IGNORE_INDEX),
        }
