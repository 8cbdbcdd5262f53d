"""Compute shared prefixes once, through the key-value cache.

A chat template puts the same tokens before every probe, and multiple-choice probes combine one
prompt with all of its options. The common prefix is computed once, then each prompt once, then the
tokens that differ between rows. The logits agree with those of a full pass to within rounding. The
first pass of each kind checks it on a few probes: with or without a common prefix, with options or
without, of similar lengths. A model that fails the check, or has no such cache, computes full rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from riprap.behaviors._agreement import precision_of, results_agree
from riprap.behaviors._model_io import contiguous_head_input
from riprap.behaviors._pass_state import prefix_pass

MIN_SHARED_TOKENS = 8  # a shorter common prefix is not worth a pass
REQUIRED_ARGUMENTS = frozenset({"attention_mask", "position_ids", "past_key_values", "use_cache"})

_CHECKED_PLANS: WeakKeyDictionary[nn.Module, dict[Any, bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class PrefixPlan:
    """Division of rows into a common prefix, prompts and suffixes.

    Attributes:
        common: token ids that all rows start with.
        prompts: what follows `common` in all rows of each group; empty where rows have no groups.
        suffixes: the remaining tokens of each row.
        group: index of each row's group.
    """

    common: list[int]
    prompts: list[list[int]]
    suffixes: list[list[int]]
    group: list[int]

    @property
    def tokens(self) -> int:
        """Number of tokens that the model computes, padding included."""
        padded = [len(part) * max(map(len, part)) for part in (self.prompts, self.suffixes) if part]
        return len(self.common) + sum(padded)

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """Demands of the plan on the model: common tokens, prompts of groups, padded suffixes."""
        return bool(self.common), bool(self.prompts), len(set(map(len, self.suffixes))) > 1

    def select(self, rows: Sequence[int]) -> PrefixPlan:
        """Return the plan for some of the rows."""
        suffixes = [self.suffixes[row] for row in rows]
        if not self.prompts:
            return PrefixPlan(self.common, [], suffixes, [0] * len(rows))
        groups = sorted({self.group[row] for row in rows})
        prompts = [self.prompts[group] for group in groups]
        return PrefixPlan(
            self.common, prompts, suffixes, [groups.index(self.group[row]) for row in rows]
        )


def plan_prefix_sharing(
    rows: Sequence[Sequence[int]], n_used: Sequence[int], group_size: int = 1
) -> PrefixPlan:
    """Cut rows so that the last `n_used` tokens of each are computed in the final pass.

    Args:
        rows: token ids, without padding.
        n_used: for each row the number of tokens at its end that must be in the final pass, at
            least 1.
        group_size: how many neighboring rows share a prompt.
    """
    limits = [len(row) - count for row, count in zip(rows, n_used, strict=True)]
    first = common_prefix_length(rows, limits)
    first = first if first >= MIN_SHARED_TOKENS else 0
    common = list(rows[0][:first])
    if group_size == 1:
        return PrefixPlan(common, [], [list(row[first:]) for row in rows], [0] * len(rows))
    step = max(group_size, 1)
    groups = [range(at, min(at + group_size, len(rows))) for at in range(0, len(rows), step)]
    ends = [common_prefix_length([rows[i] for i in g], [limits[i] for i in g]) for g in groups]
    prompts = [list(rows[g[0]][first:end]) for g, end in zip(groups, ends, strict=True)]
    suffixes = [list(rows[i][end:]) for g, end in zip(groups, ends, strict=True) for i in g]
    if not any(prompts):  # all prompts end with the common prefix, as that of a single probe does
        return PrefixPlan(common, [], suffixes, [0] * len(rows))
    group = [index for index, g in enumerate(groups) for _ in g]
    return PrefixPlan(common, prompts, suffixes, group)


def common_prefix_length(rows: Sequence[Sequence[int]], limits: Sequence[int]) -> int:
    """Return how many tokens all rows start with in common, at most `min(limits)`."""
    first, last = min(rows, key=list), max(rows, key=list)  # the others lie between, in this order
    end = max(min(limits), 0)
    pairs = zip(range(end), first, last, strict=False)
    return next((at for at, one, other in pairs if one != other), end)


def saves_compute(plan: PrefixPlan, rows: Sequence[Sequence[int]]) -> bool:
    """Return whether a plan saves more than its additional passes cost."""
    if not plan.common and (not plan.prompts or min(map(len, plan.prompts)) == 0):
        return False
    return 1.2 * plan.tokens < len(rows) * max(map(len, rows))


def run_plan(
    model: nn.Module, plan: PrefixPlan, n_positions: int, arguments: frozenset[str]
) -> Tensor | None:
    """Compute the logits at the last `n_positions` positions of each row.

    Args:
        arguments: names of the arguments of the model's `forward`.

    Returns:
        shape (rows, n_positions, vocabulary), undefined at positions before a row's suffix; None
        where the model returns no cache that can be repeated.
    """
    device = next(model.parameters()).device
    mask, cache = torch.ones(1, 0, dtype=torch.long, device=device), None
    with prefix_pass():
        for rows in filter(None, ([plan.common] if plan.common else [], plan.prompts)):
            mask, output = _forward(model, rows, *_repeat_cache(cache, mask, [0] * len(rows)))
            cache = _repeatable_cache(output)
            if cache is None:
                return None
    extra: dict[str, Any] = dict.fromkeys({"logits_to_keep"} & arguments, n_positions)
    with contiguous_head_input(model):
        _, output = _forward(model, plan.suffixes, *_repeat_cache(cache, mask, plan.group), **extra)
    logits: Tensor = output.logits
    return logits[:, -n_positions:].float()


def common_cache(model: nn.Module, common: list[int], n_rows: int) -> Any:
    """Return the cache of `common` with `n_rows` equal rows; None where it cannot be repeated."""
    empty = torch.ones(1, 0, dtype=torch.long, device=next(model.parameters()).device)
    with prefix_pass():
        mask, output = _forward(model, [common], empty, None)
    cache = _repeatable_cache(output)
    return None if cache is None else _repeat_cache(cache, mask, [0] * n_rows)[1]


def _repeatable_cache(output: Any) -> Any:
    """Return the cache in a model's output; None if rows of it cannot be selected.

    The state of linear attention or of a state-space layer is no sequence of keys and values.
    """
    cache = getattr(output, "past_key_values", None)
    parts = [cache, *(getattr(cache, "layers", None) or [])]
    return cache if all(hasattr(part, "batch_select_indices") for part in parts) else None


def _forward(
    model: nn.Module, rows: list[list[int]], mask: Tensor, cache: Any, **extra: Any
) -> tuple[Tensor, Any]:
    """Run the model on `rows`, left-padded, after the cached tokens; return (mask, output)."""
    width, device = max(map(len, rows)), mask.device
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    own = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    extra["position_ids"] = (mask.sum(1, keepdim=True) + own.cumsum(1) - 1).clamp(min=0)
    mask = torch.cat([mask, own], 1)
    return mask, model(ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)


def _repeat_cache(cache: Any, mask: Tensor, group: list[int]) -> tuple[Tensor, Any]:
    """Return (mask, cache) with one row for each entry of `group`."""
    indices = torch.tensor(group, device=mask.device)
    if cache is not None:
        cache.batch_select_indices(indices)
    return mask[indices], cache


def plan_agrees(
    model: nn.Module,
    key: Any,
    shared: Callable[[], Tensor | None],
    full: Callable[[], Tensor],
    n_used: Tensor,
) -> bool:
    """Return whether plans of a kind give the logits of full rows, checked once in each precision.

    Args:
        key: stands for the kind.
        shared, full: compute the logits of a few rows by such a plan and as full rows, shape
            (rows, positions, vocabulary).
        n_used: shape (rows,), how many of the last positions are compared.
    """
    known = _CHECKED_PLANS.setdefault(model, {})
    key = (key, precision_of(model))
    if key not in known:
        known[key] = results_agree(model, shared, full, n_used)
    return known[key]
