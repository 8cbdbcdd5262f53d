"""Constrained tokens: protect responses, their first tokens most strongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from riprap.behaviors import device_of, logits_of
from riprap.evaluation import loss_and_gradient, preserve_training_state, to_device
from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import Penalty
from riprap.guards.replay import BatchGuard, split_labels
from riprap.linalg import Vector, upcast
from riprap.selection import IGNORE_INDEX


@dataclass
class ConstrainedTokens(Penalty, BatchGuard):
    """Penalty λ · mean over response tokens of −(2/β_t) log σ(β_t log(π_θ(y_t) / π_θ₀(y_t))).

    A token's gradient is w_t ∇(−log π_θ(y_t)) with w_t = 2σ(−β_t log(π_θ/π_θ₀)): 1 for an unchanged
    token, up to 2 for one that has become less likely than at θ₀, and toward 0 for one that has
    become more likely. A larger β_t makes the transition sharper. β_1 = 5β, β_2..5 = 20β, then β.

    Args:
        batches: protected examples, each a pair (model inputs, labels) or a mapping with `labels`.
            Labels, shape (n, T), are the token ids of the responses at their own positions and
            −100 elsewhere, as in supervised fine-tuning.
        beta: β of later tokens.
        first_factor, early_factor: factors of β for token 1, and for tokens 2 to `early_until`.

    Source: Qi et al., 2406.05946, eq. 3, with its β. Variant: the paper applies this objective to
    the task's data; a guard sees only the task's gradient, and adds the objective on protected
    examples. The paper sums over tokens; here it is the mean, as in most task losses.

    Raises:
        ConfigError: there is no batch, or a factor is not above 0; in `start`, a batch has no
            response token.
    """

    beta: float = 0.1
    first_factor: float = 5.0
    early_factor: float = 20.0
    early_until: int = 5
    references: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "constrained_tokens"
    goal: ClassVar[str] = "the protected responses"
    field_of_origin: ClassVar[str] = "safety"
    source: ClassVar[str] = "2406.05946"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        Penalty.__post_init__(self)
        BatchGuard.__post_init__(self)
        if not min(self.beta, self.first_factor, self.early_factor) > 0 or self.early_until < 1:
            raise self._error(
                f"beta={self.beta}, first_factor={self.first_factor}, early_factor="
                f"{self.early_factor}, early_until={self.early_until}; all must be above 0"
            )

    def start(self, view: GuardView) -> None:
        """Store log π_θ₀ of the response tokens of every batch."""
        super().start(view)
        device = device_of(view.model)
        with torch.inference_mode(False), torch.no_grad(), preserve_training_state(view.model):
            self.references = [
                self._response_log_probs(view.model, to_device(batch, device))[0]
                for batch in self.batches
            ]

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute the objective on the next batch and its gradient."""
        reference = self.references[self.cycler.position]
        batch = self.cycler.next_batch(view.model)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            return self.objective(*self._response_log_probs(model, batch), reference)

        value, gradient = loss_and_gradient(loss, view.model, batch, view.parameters)
        if gradient is None:
            raise self._error("the responses depend on no trained parameter")
        return value, gradient

    def objective(self, log_probs: Tensor, order: Tensor, reference: Tensor) -> Tensor:
        """Compute the mean over tokens from log π_θ(y_t), t, and log π_θ₀(y_t), all (tokens,)."""
        beta = torch.full_like(log_probs, self.beta)
        beta = torch.where(order <= self.early_until, self.beta * self.early_factor, beta)
        beta = torch.where(order == 1, self.beta * self.first_factor, beta)
        return (-2 / beta * logsigmoid(beta * (log_probs - reference))).mean()

    def _response_log_probs(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return log π(y_t) of all response tokens of a batch, and their t; both (tokens,)."""
        inputs, labels = split_labels(self.name, batch)
        output = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
        targets = labels[:, 1:]
        counted = targets != IGNORE_INDEX
        if not bool(counted.any()):
            raise self._error("a batch has no response token: its labels are all −100")
        # Select rows before the softmax, to avoid a copy of all logits.
        logits = upcast(logits_of(output)[:, :-1][counted])
        log_probs = torch.log_softmax(logits, -1).gather(1, targets[counted][:, None])[:, 0]
        return log_probs, counted.cumsum(1)[counted]
