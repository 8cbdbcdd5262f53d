"""Logits from any model: transformers' output objects, tuples or bare tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from riprap.behaviors._base import ProbeSet
from riprap.errors import BehaviorError

_ARGUMENT_NAMES: WeakKeyDictionary[FunctionType, frozenset[str]] = WeakKeyDictionary()


@dataclass(frozen=True, repr=False)
class TokenBatch(ProbeSet):
    """Token sequences, left-padded: position −1 is the last token of each.

    Attributes:
        input_ids: shape (n, T), long.
        attention_mask: shape (n, T), 1 on real tokens; None where all lengths are equal.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None

    def __repr__(self) -> str:
        return f"TokenBatch({len(self)} rows of up to {self.max_length} tokens)"

    @classmethod
    def pad(cls, rows: list[list[int]], pad_id: int = 0) -> TokenBatch:
        """Left-pad `rows` to the same length.

        Raises:
            BehaviorError: there are no rows, or a row is empty.
        """
        if not rows:
            raise BehaviorError("there are no probes; give at least one")
        lengths = [len(row) for row in rows]
        if min(lengths) == 0:
            raise BehaviorError(f"probe {lengths.index(0)} is empty; it needs at least one token")
        width = max(lengths)
        ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
        if min(lengths) == width:
            return cls(ids)
        mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
        return cls(ids, mask)

    @property
    def max_length(self) -> int:
        """Length of the longest sequence, in tokens."""
        return self.input_ids.shape[1]

    def __len__(self) -> int:
        return len(self.input_ids)

    @classmethod
    def join(cls, batches: list[TokenBatch]) -> TokenBatch:
        """Concatenate the rows of `batches`, left-padded to the longest."""
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

    def select(self, indices: list[int]) -> TokenBatch:
        """Return the rows at `indices`, without padding that none of them needs."""
        ids = self.input_ids[indices]
        if self.attention_mask is None:
            return TokenBatch(ids)
        mask = self.attention_mask[indices]
        longest = int(mask.sum(-1).max())
        ids, mask = ids[:, -longest:], mask[:, -longest:]
        return TokenBatch(ids, None if bool(mask.all()) else mask)

    def rows(self) -> list[list[int]]:
        """Return the token ids of each row, without padding."""
        ids = self.input_ids.tolist()
        if self.attention_mask is None:
            return ids
        lengths = self.attention_mask.sum(1).tolist()
        return [row[len(row) - length :] for row, length in zip(ids, lengths, strict=True)]

    def sequences(self) -> list[list[int]]:
        """Return the rows: one for each probe."""
        return self.rows()

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on `device`."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return TokenBatch(self.input_ids.to(device), mask)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter; CPU for a model without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def accepted_arguments(model: nn.Module) -> frozenset[str]:
    """Return the names of the arguments of the model's `forward` and of those it wraps."""
    names: set[str] = set()
    for module in (model, *_wrapped_models(model)):
        names.update(_argument_names(module.forward))
    return frozenset(names)


def _argument_names(forward: Any) -> frozenset[str]:
    function = getattr(forward, "__func__", forward)
    if not isinstance(function, FunctionType):
        return frozenset(inspect.signature(forward).parameters)
    if function not in _ARGUMENT_NAMES:
        _ARGUMENT_NAMES[function] = frozenset(inspect.signature(function).parameters)
    return _ARGUMENT_NAMES[function]


def _wrapped_models(model: nn.Module) -> list[nn.Module]:
    """Return the models inside wrappers (PEFT, DDP, torch.compile), which pass arguments on."""
    inner: list[nn.Module] = []
    current = model
    while len(inner) < 5:
        getter = getattr(current, "get_base_model", None)
        wrapped = getter() if callable(getter) else None
        if wrapped is None or wrapped is current:
            wrapped = getattr(current, "_orig_mod", None)
        if wrapped is None and type(current).__name__.endswith("DataParallel"):
            wrapped = current.module
        if not isinstance(wrapped, nn.Module) or wrapped is current:
            break
        inner.append(wrapped)
        current = wrapped
    return inner


@contextmanager
def contiguous_head_input(model: nn.Module) -> Iterator[None]:
    """Copy what the model passes to its output head, in passes that keep few positions.

    A transformers model slices the positions that `logits_to_keep` names. On a CPU, PyTorch
    multiplies such a slice by the head's matrix several times slower than a copy of it.
    """
    head = None
    if device_of(model).type == "cpu":
        inner = [model, *_wrapped_models(model)][-1]
        head = getattr(inner, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        yield
        return
    handle = head.register_forward_pre_hook(_contiguous)
    try:
        yield
    finally:
        handle.remove()


def _contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def has_soft_prompts(model: nn.Module) -> bool:
    """Return whether PEFT puts virtual tokens before the model's inputs."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output.

    Raises:
        BehaviorError: the output has no logits.
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
            f"the model returned {type(output).__name__} without logits; return a tensor, a tuple "
            "that starts with one or an object with `.logits`, or write a custom margin"
        )
    return logits


def is_compiled(model: nn.Module) -> bool:
    """Return whether a pass of another shape would recompile the model."""
    return any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in (model, *_wrapped_models(model))
    )
