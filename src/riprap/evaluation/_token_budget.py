"""Number of tokens that a pass may compute at once: that of one micro-batch of training.

A pass then needs no more memory than a training step does. Where training keeps only the inputs of
its layers (gradient checkpointing), a pass with gradients computes fewer tokens: it keeps all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from riprap._distributed import has_sharded_parameters, min_over_ranks
from riprap.behaviors import device_of
from riprap.evaluation._features import layer_stacks

DEFAULT_TOKENS = 1024  # before training has shown its own
CHECKPOINTED_SHARE = 1 / 16  # of what a transformer layer computes, its input is kept
_MEMORY_ERROR = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


@dataclass
class _Budget:
    """Budget of one model.

    Attributes:
        training: tokens of the largest micro-batch that was seen; 0 before.
        reached: tokens for which the memory was not enough, halved; with gradients and without.
    """

    training: int = 0
    reached: dict[bool, int] = field(default_factory=dict)


_BUDGETS: WeakKeyDictionary[nn.Module, _Budget] = WeakKeyDictionary()


def token_budget(model: nn.Module, gradients: bool) -> int:
    """Return the number of tokens that a pass may compute at once, the same on all ranks.

    Args:
        gradients: whether the pass keeps its activations for a backward pass.
    """
    own = _BUDGETS.get(model, _Budget())
    tokens = own.training or DEFAULT_TOKENS
    if gradients and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        n_layers = max(layer_stacks(model).values(), default=1)
        tokens = int(tokens * min(1.0, CHECKPOINTED_SHARE + 1 / n_layers))
    tokens = max(1, min(tokens, own.reached.get(gradients, tokens)))
    if has_sharded_parameters(model):
        tokens = int(min_over_ranks(tokens, device_of(model)))
    return tokens


def note_training_tokens(model: nn.Module, tokens: int) -> None:
    """Let passes over probes compute as many tokens at once as training does."""
    if tokens > 0:
        _BUDGETS.setdefault(model, _Budget()).training = tokens


def note_memory_limit(model: nn.Module, gradients: bool, tokens: int) -> None:
    """Remember that memory was not enough for twice this number of tokens."""
    _BUDGETS.setdefault(model, _Budget()).reached[gradients] = max(1, tokens)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_MEMORY_ERROR.search(str(error)))


def tokens_in(arguments: Any, named: Mapping[str, Any]) -> int:
    """Return the number of tokens in a model's arguments; 0 if they hold no tensor.

    Of embeddings and other features, shape (rows, positions, d): rows × positions.
    """
    parts = [*(arguments if isinstance(arguments, tuple) else ()), *named.values()]
    parts += [value for part in parts if isinstance(part, Mapping) for value in part.values()]
    first = named.get("input_ids", named.get("inputs_embeds"))
    tensors = [part for part in (first, *parts) if isinstance(part, Tensor) and part.dim() > 0]
    if not tensors:
        return 0
    inputs = tensors[0]
    if inputs.is_floating_point() and inputs.dim() < 3:
        return len(inputs)
    return inputs.shape[:2].numel()
