"""Probes begin alike: what they have in common goes through the model once.

A chat template puts the same tokens before every probe, and a choice crosses one prompt with all
its options. Through the model's key-value cache the common beginning is read once, then each
prompt once, then what is each row's own. The logits are the same to within rounding, which is
checked at the first pass over each batch of probes; a model for which they are not, or that has no
such cache, is given whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

LEAST = 8  # common tokens that are worth a pass of their own
NEEDED = frozenset({"attention_mask", "position_ids", "past_key_values", "use_cache"})

# A plain global, since compiled models trace the hooks that ask for it; a context variable would
# break their graphs at each layer.
_ahead = False
_verified: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


def reading_ahead() -> bool:
    """Whether the pass under way is not one whose outputs are to be kept as the probes'."""
    return _ahead


@contextmanager
def trying() -> Iterator[None]:
    """Mark passes over common beginnings, or those that are only compared."""
    global _ahead
    before, _ahead = _ahead, True
    try:
        yield
    finally:
        _ahead = before


@dataclass(frozen=True)
class Plan:
    """How rows are cut: one common beginning, the rest of each prompt, the rest of each row.

    Attributes:
        common: token ids that all rows begin with.
        prompts: what follows in the rows of each group; empty where rows stand alone.
        rests: what is left of each row.
        group: for each row the index of its group.
    """

    common: list[int]
    prompts: list[list[int]]
    rests: list[list[int]]
    group: list[int]

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        padded = [len(part) * max(map(len, part)) for part in (self.prompts, self.rests) if part]
        return len(self.common) + sum(padded)


def plan(rows: Sequence[Sequence[int]], own: Sequence[int], width: int = 1) -> Plan:
    """Cut rows so that each keeps its last `own` tokens for the final pass.

    Args:
        rows: token ids, without padding.
        own: for each row how many tokens at its end must be in the final pass, 1 at the least.
        width: how many neighbouring rows have one prompt.
    """
    limits = [len(row) - count for row, count in zip(rows, own, strict=True)]
    first = _agreement(rows, limits)
    first = first if first >= LEAST else 0
    groups = [range(at, min(at + width, len(rows))) for at in range(0, len(rows), max(width, 1))]
    if width == 1:
        return Plan(list(rows[0][:first]), [], [list(row[first:]) for row in rows], [0] * len(rows))
    ends = [_agreement([rows[i] for i in g], [limits[i] for i in g]) for g in groups]
    prompts = [list(rows[g[0]][first:end]) for g, end in zip(groups, ends, strict=True)]
    rests = [list(rows[i][end:]) for g, end in zip(groups, ends, strict=True) for i in g]
    if not any(prompts):  # all end where the common beginning does, as that of a single probe
        return Plan(list(rows[0][:first]), [], rests, [0] * len(rows))
    group = [index for index, g in enumerate(groups) for _ in g]
    return Plan(list(rows[0][:first]), prompts, rests, group)


def _agreement(rows: Sequence[Sequence[int]], limits: Sequence[int]) -> int:
    """How many tokens all rows begin with alike, `min(limits)` at the most."""
    for at in range(max(min(limits), 0)):
        if any(row[at] != rows[0][at] for row in rows):
            return at
    return max(min(limits), 0)


def worth_it(cut: Plan, rows: Sequence[Sequence[int]]) -> bool:
    """Whether a plan saves more than its passes cost."""
    if not cut.common and (not cut.prompts or min(map(len, cut.prompts)) == 0):
        return False
    return 1.2 * cut.tokens < len(rows) * max(map(len, rows))


def logits_of_plan(model: nn.Module, cut: Plan, keep: int, takes: frozenset[str]) -> Tensor | None:
    """Logits at the last `keep` positions of each row, shape (rows, keep, vocabulary).

    At positions that are not among a row's own they mean nothing. None where the model keeps no
    cache of the usual kind.
    """
    device = next(model.parameters()).device
    seen, cache = torch.ones(1, 0, dtype=torch.long, device=device), None
    with trying():
        for rows in filter(None, ([cut.common] if cut.common else [], cut.prompts)):
            seen, cache = _read(model, rows, _spread(cache, seen, [0] * len(rows)))
            if not hasattr(cache, "batch_select_indices"):
                return None
    seen, cache = _spread(cache, seen, cut.group)
    ids, mask, positions = _laid_out(cut.rests, seen, device)
    extra = {"logits_to_keep": keep} if "logits_to_keep" in takes else {}
    output = model(
        ids,
        attention_mask=torch.cat([seen, mask], 1),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **extra,
    )
    logits: Tensor = output.logits
    return logits[:, -keep:].float()


def _read(model: nn.Module, rows: list[list[int]], after: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """Mask and cache after `rows` have been read."""
    seen, cache = after
    ids, mask, positions = _laid_out(rows, seen, seen.device)
    seen = torch.cat([seen, mask], 1)
    output = model(
        ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return seen, getattr(output, "past_key_values", None)


def _laid_out(
    rows: list[list[int]], seen: Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows padded on the left, the mask of their tokens, and their positions after `seen`."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    positions = (seen.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp(min=0)
    return ids, mask, positions


def _spread(cache: Any, seen: Tensor, group: list[int]) -> tuple[Tensor, Any]:
    """Mask and cache with a row for each entry of `group`."""
    indices = torch.tensor(group, device=seen.device)
    if cache is not None:
        cache.batch_select_indices(indices)
    return seen[indices], cache


def verified(model: nn.Module, key: Any) -> bool | None:
    """Whether a plan was found to give the logits of whole rows; None before that was tried."""
    return _verified.get(model, {}).get(key)


def verify(model: nn.Module, key: Any, found: Tensor | None, whole: Tensor, own: Tensor) -> None:
    """Remember whether a plan gives the logits of whole rows.

    Args:
        found, whole: shape (rows, keep, vocabulary).
        own: shape (rows,), how many of the last positions count.
    """
    good = False
    if found is not None and found.shape == whole.shape:
        counted = torch.arange(whole.shape[1], 0, -1, device=whole.device) <= own[:, None]
        error = (found - whole)[counted].abs().max()
        precise = next(model.parameters()).dtype == torch.float32
        good = bool(error <= (1e-3 if precise else 5e-2) * whole[counted].abs().max())
    _verified.setdefault(model, {})[key] = good
