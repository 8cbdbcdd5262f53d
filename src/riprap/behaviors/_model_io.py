"""Reading logits from any model: transformers' output objects, tuples, or a bare tensor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riprap._distributed import sharded
from riprap.behaviors import _prefix_cache as prefixes
from riprap.behaviors._token_ids import readable
from riprap.errors import BehaviorError


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences, left-padded, so that position −1 is everyone's last token.

    Attributes:
        input_ids: shape (n, T), long.
        attention_mask: shape (n, T), 1 on real tokens; None where all lengths are equal.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None

    @classmethod
    def pad(cls, rows: list[list[int]], pad_id: int = 0) -> TokenBatch:
        """Left-pad `rows` to one length.

        Raises:
            BehaviorError: there is no row, or a row is empty.
        """
        if not rows:
            raise BehaviorError("no probes: give at least one")
        lengths = [len(row) for row in rows]
        if min(lengths) == 0:
            raise BehaviorError(f"probe {lengths.index(0)} is empty: it needs at least one token")
        width = max(lengths)
        ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
        if min(lengths) == width:
            return cls(ids)
        mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
        return cls(ids, mask)

    def __len__(self) -> int:
        return len(self.input_ids)

    @classmethod
    def join(cls, batches: list[TokenBatch]) -> TokenBatch:
        """All rows of `batches`, padded on the left to the longest."""
        width = max(batch.input_ids.shape[1] for batch in batches)
        if all(b.attention_mask is None and b.input_ids.shape[1] == width for b in batches):
            return cls(torch.cat([batch.input_ids for batch in batches]))

        def widen(rows: Tensor) -> Tensor:
            return torch.nn.functional.pad(rows, (width - rows.shape[1], 0))

        masks = [
            torch.ones_like(b.input_ids) if b.attention_mask is None else b.attention_mask
            for b in batches
        ]
        ids = torch.cat([widen(batch.input_ids) for batch in batches])
        return cls(ids, torch.cat([widen(mask) for mask in masks]))

    def take(self, indices: list[int]) -> TokenBatch:
        """The rows at `indices`, without padding that none of them needs."""
        ids = self.input_ids[indices]
        if self.attention_mask is None:
            return TokenBatch(ids)
        mask = self.attention_mask[indices]
        longest = int(mask.sum(-1).max())
        ids, mask = ids[:, -longest:], mask[:, -longest:]
        return TokenBatch(ids, None if bool(mask.all()) else mask)

    def rows(self) -> list[list[int]]:
        """Token ids row by row, without padding."""
        ids = self.input_ids.tolist()
        if self.attention_mask is None:
            return ids
        lengths = self.attention_mask.sum(1).tolist()
        return [row[len(row) - length :] for row, length in zip(ids, lengths, strict=True)]

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on another device."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return TokenBatch(self.input_ids.to(device), mask)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter (CPU for a model without any)."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def accepted_arguments(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the model's `forward` takes, wrappers looked through."""
    names: set[str] = set()
    for module in (model, *_wrapped(model)):
        names.update(inspect.signature(module.forward).parameters)
    return frozenset(names)


def _wrapped(model: nn.Module) -> list[nn.Module]:
    """What a wrapper (PEFT, DDP, torch.compile) holds and hands its keyword arguments on to."""
    inner: list[nn.Module] = []
    current = model
    while len(inner) < 5:
        getter = getattr(current, "get_base_model", None)
        following = getter() if callable(getter) else None
        if following is None or following is current:
            following = getattr(current, "_orig_mod", None)
        if following is None and type(current).__name__.endswith("DataParallel"):
            following = current.module
        if not isinstance(following, nn.Module) or following is current:
            break
        inner.append(following)
        current = following
    return inner


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output.

    Raises:
        BehaviorError: the output is none of the forms that are understood.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    if logits is None:
        logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise BehaviorError(
            f"the model returned {type(output).__name__} without logits: return a tensor, a tuple "
            "that begins with one, or an object with `.logits`, or write a custom margin"
        )
    return logits


def last_logits(
    model: nn.Module,
    batch: TokenBatch,
    keep: int = 1,
    own: Tensor | None = None,
    width: int = 1,
) -> Tensor:
    """Logits at the last `keep` positions of each sequence.

    Args:
        own: how many of a sequence's last positions will be used, shape (n,), `keep` at the most;
            what the others hold is then undefined. None: all of them.
        width: how many neighbouring sequences begin with one prompt.

    Returns:
        shape (n, keep, vocabulary). A model that returns (n, vocabulary) is read as having
        answered for the last position only.

    Raises:
        BehaviorError: probes of different lengths meet a model without `attention_mask`, or the
            logits have a shape that cannot be read.
    """
    with readable(batch.input_ids):
        return _last_logits(model, batch, keep, own, width)


def _last_logits(
    model: nn.Module, batch: TokenBatch, keep: int, own: Tensor | None, width: int
) -> Tensor:
    takes = accepted_arguments(model)
    if not takes >= prefixes.NEEDED or model.training or _compiled(model) or sharded(model):
        return _whole_rows(model, batch, keep, takes)
    counts = torch.full((len(batch),), keep) if own is None else own.cpu()
    rows = batch.rows()
    cut = prefixes.plan(rows, counts.tolist(), width)
    key = (len(cut.common), tuple(map(len, rows)), keep, width)
    if not prefixes.worth_it(cut, rows):
        return _whole_rows(model, batch, keep, takes)
    if prefixes.verified(model, key) is None:
        with torch.no_grad(), prefixes.trying():
            tried = prefixes.logits_of_plan(model, cut, keep, takes)
            whole = _whole_rows(model, batch, keep, takes)
        prefixes.verify(model, key, tried, whole, counts.to(whole.device))
    found = None
    if prefixes.verified(model, key):
        found = prefixes.logits_of_plan(model, cut, keep, takes)
    return _whole_rows(model, batch, keep, takes) if found is None else found


def _compiled(model: nn.Module) -> bool:
    """Whether other shapes would be compiled anew."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in (model, *_wrapped(model))
    )


def _whole_rows(model: nn.Module, batch: TokenBatch, keep: int, takes: frozenset[str]) -> Tensor:
    batch = batch.to(device_of(model))
    extra: dict[str, Any] = {}
    if batch.attention_mask is not None:
        if "attention_mask" not in takes:
            raise BehaviorError(
                "the probes have different lengths, and the model's forward takes no "
                "`attention_mask`: give probes of one length, or write a custom margin"
            )
        extra["attention_mask"] = batch.attention_mask
        if "position_ids" in takes:
            extra["position_ids"] = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in takes:
        extra["use_cache"] = False
    if "logits_to_keep" in takes:
        extra["logits_to_keep"] = keep
    logits = logits_of(model(batch.input_ids, **extra))
    if logits.dim() == 2 and keep == 1:
        logits = logits.unsqueeze(1)
    if logits.dim() != 3 or len(logits) != len(batch) or logits.shape[1] < keep:
        raise BehaviorError(
            f"logits of shape {tuple(logits.shape)} for {len(batch)} probes: "
            f"expected (n, T, vocabulary) with T >= {keep}"
        )
    return logits[:, -keep:].float()
