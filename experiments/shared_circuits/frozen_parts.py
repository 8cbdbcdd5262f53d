"""Parts of a model that are frozen: restored after each optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError

BLOCKS, WORDS, OLD_ROWS, ALL_BUT_NEW = "blocks", "words", "old rows", "all but new rows"
PARTS = (BLOCKS, WORDS, OLD_ROWS, ALL_BUT_NEW)
TABLES = ("embed_tokens", "lm_head")  # one row a word


def is_words(name: str) -> bool:
    """Tell if a parameter is the embedding or the output head."""
    return any(table in name for table in TABLES)


def part(model: nn.Module, held: str, new: Sequence[int]) -> dict[str, Tensor]:
    """Return the masks of a part of the model by parameter name.

    `words` are embedding and head, `blocks` everything else, `old rows` the rows of embedding and
    head of words that are not new, `all but new rows` everything except the rows of new words.

    Args:
        new: tokens that are new.

    Raises:
        ConfigError: no such part.
    """
    if held not in PARTS:
        raise ConfigError(f"no part {held!r} of the model; choose one of {', '.join(PARTS)}")
    masks = {}
    for name, own in model.named_parameters():
        mask = torch.ones_like(own, dtype=torch.bool)
        if is_words(name):
            if held in (OLD_ROWS, ALL_BUT_NEW):
                mask[list(new)] = False
            if held != BLOCKS:
                masks[name] = mask
        elif held in (BLOCKS, ALL_BUT_NEW):
            masks[name] = mask
    return masks


class FrozenEntries:
    """Entries of parameters that are restored to their present values.

    A gradient of 0 would not freeze them: weight decay and Adam's moments move a parameter
    without one.

    Args:
        masks: of the entries, by parameter name; empty: nothing is frozen.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        own = dict(model.named_parameters())
        self._values = [(own[n], mask, own[n].detach().clone()) for n, mask in masks.items()]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the frozen entries bit by bit; call it after each optimizer step."""
        for parameter, mask, value in self._values:
            parameter.copy_(torch.where(mask, value, parameter))
