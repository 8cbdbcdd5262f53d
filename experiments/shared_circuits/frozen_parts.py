"""Parts of a model that are held still: put back after each step, whatever the optimizer did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError

BLOCKS, WORDS, OLD_ROWS, ALL_BUT_NEW = "blocks", "words", "old rows", "all but new rows"
PARTS = (BLOCKS, WORDS, OLD_ROWS, ALL_BUT_NEW)
TABLES = ("embed_tokens", "lm_head")  # one row a word


def is_words(name: str) -> bool:
    """Whether a parameter is the embedding or the output head."""
    return any(table in name for table in TABLES)


def part(model: nn.Module, held: str, new: Sequence[int]) -> dict[str, Tensor]:
    """Which entries of which parameters a part of the model has: masks by parameter name.

    `words` are embedding and head, `blocks` everything else, `old rows` the rows of embedding and
    head of words that are not new; `all but new rows` leaves nothing but the rows of new words.

    Args:
        new: tokens that are new.

    Raises:
        ConfigError: no such part.
    """
    if held not in PARTS:
        raise ConfigError(f"no part {held!r} that could be held: choose of {', '.join(PARTS)}")
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


class Held:
    """Entries of parameters as they are now, to which they go back.

    A gradient of 0 would not hold them: weight decay and the moments of Adam move a parameter
    without one.

    Args:
        masks: by parameter name, which entries; empty: nothing is held.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        own = dict(model.named_parameters())
        self._kept = [(own[n], mask, own[n].detach().clone()) for n, mask in masks.items()]

    @torch.no_grad()
    def put_back(self) -> None:
        """After each step of the optimizer: held entries are bit by bit as they were."""
        for parameter, mask, kept in self._kept:
            parameter.copy_(torch.where(mask, kept, parameter))
