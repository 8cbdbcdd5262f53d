"""LwF: keep the initial model's answers on the new task's own inputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import logits_of
from riprap.evaluation import is_in_pass, loss_and_gradient, preserve_training_state
from riprap.guards._base import GuardView, Proposal
from riprap.guards.regularization._penalty import Penalty
from riprap.guards.regularization._probe_outputs import counted_positions
from riprap.linalg import Vector, upcast

Call = tuple[tuple[Any, ...], dict[str, Any]]


class TrainingCalls:
    """Forward pre-hook that keeps the arguments of the loop's own passes, until `take`.

    A copy of the model that it is registered on, or a pickled one, has an empty one.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def __call__(self, _module: nn.Module, args: Any, named: Any) -> None:
        if torch.is_grad_enabled() and not is_in_pass():
            detached = {name: _detached(part) for name, part in named.items()}
            self._calls.append((tuple(map(_detached, args)), detached))

    def __reduce__(self) -> Any:
        return TrainingCalls, ()

    def take(self) -> list[Call]:
        """Return the calls since the last time."""
        calls, self._calls = self._calls, []
        return calls


def _detached(part: Any) -> Any:
    return part.detach() if isinstance(part, Tensor) else part


@dataclass
class LwF(Penalty):
    """Penalty λ · mean KL(p_θ₀ ‖ p_θ) at temperature T, on the inputs of the step's own batches.

    No old examples are needed: the inputs are those of the forward passes, with gradients, that the
    loop ran since the last step; with gradient accumulation, of all of them. Each costs a pass with
    θ₀, and a forward and a backward pass with θ. Counted positions are those that predict a label
    (not −100) if the model is given `labels`, else those of `attention_mask`, else all.

    Args:
        temperature: T.

    Source: Li and Hoiem, 1606.09282, eq. 1 to 3, with T = 2 and λ = 1. Simplified: the old and the
    new task share their outputs, where the paper adds new ones and trains them first; passes are in
    evaluation mode.

    Raises:
        ConfigError: T is not above 0; in `start`, the model is sharded over ranks, or there are
            several ranks, of which each has batches of its own.
    """

    temperature: float = 2.0
    initial: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "lwf"
    goal: ClassVar[str] = "the initial answers to the new inputs"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1606.09282"
    fidelity: ClassVar[str] = "simplified"
    state_attrs: ClassVar[tuple[str, ...]] = ("initial",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise self._error(f"temperature={self.temperature}; it must be above 0")
        self._handle: RemovableHandle | None = None
        self._calls = TrainingCalls()
        self._taken: list[Call] = []  # those of the coming step

    def start(self, view: GuardView) -> None:
        """Store θ₀, and listen to the model's passes."""
        super().start(view)
        if has_sharded_parameters(view.model) or (
            dist.is_initialized() and dist.get_world_size() > 1
        ):
            raise self._error(
                "the guard reads the batches of its own rank, and would change the ranks' steps "
                "differently; use KL or Replay, whose batches are the same on all ranks"
            )
        self.end(view)
        self.initial = _by_name(view, range(len(view.parameters)))
        self._handle = view.model.register_forward_pre_hook(self._calls, with_kwargs=True)

    def end(self, view: GuardView) -> None:
        """Listen no longer."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self.on_step_end()

    def on_step_end(self) -> None:
        """Drop the step's batches."""
        self._calls.take()
        self._taken = []

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Store θ₀ of the parameters that join: their values until now."""
        self.initial |= _by_name(view, joined)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Add the penalty's gradient, if a batch was seen."""
        self._taken = self._calls.take()
        if not self._taken:
            return Proposal(
                detail="nothing was done: the model ran no pass with gradients since the last step"
            )
        return super().on_gradients(view)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute the mean KL over all counted positions, and its gradient."""
        total, count, gradient = 0.0, 0, None
        for call in self._taken:
            reference = self._reference(view.model, call)

            def loss(model: nn.Module, call: Call, reference: Tensor = reference) -> Tensor:
                now = (_logits(self.name, model, call, {}) / self.temperature).log_softmax(-1)
                return torch.nn.functional.kl_div(now, reference, log_target=True, reduction="sum")

            value, part = loss_and_gradient(loss, view.model, call, view.parameters)
            total, count = total + value, count + len(reference)
            if part is not None and gradient is not None:
                gradient = list(torch._foreach_add(gradient, part))
            gradient = part if gradient is None else gradient
        if gradient is None:
            raise self._error("the answers depend on no trained parameter")
        return total / count, list(torch._foreach_div(gradient, count))

    def _reference(self, model: nn.Module, call: Call) -> Tensor:
        """Return log p_θ₀ at the counted positions, at temperature T."""
        with torch.no_grad(), preserve_training_state(model):
            logits = _logits(self.name, model, call, self.initial)
        return (logits / self.temperature).log_softmax(-1)


def _by_name(view: GuardView, indices: Sequence[int] | range) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in view.model.named_parameters()}
    chosen = [view.parameters[index] for index in indices]
    return {names[id(parameter)]: parameter.detach().clone() for parameter in chosen}


def _logits(guard: str, model: nn.Module, call: Call, weights: dict[str, Tensor]) -> Tensor:
    """Return the logits of a call at its counted positions, (positions, vocabulary).

    Args:
        weights: used in place of the model's own, by name.
    """
    args, named = call
    inputs = inspect.signature(model.forward).bind(*args, **named).arguments
    inputs = {name: part for name, part in inputs.items() if name != "kwargs"} | named
    logits = logits_of(
        functional_call(model, weights, args, named) if weights else model(*args, **named)
    )
    if logits.dim() == 2:
        return upcast(logits)
    return upcast(logits[counted_positions(guard, inputs, logits)])
