"""KL: keep the model's answers on chosen prompts close to its initial answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from riprap._distributed import raise_on_all_ranks
from riprap.behaviors import Behavior, device_of, logits_of
from riprap.evaluation import loss_and_gradient, preserve_training_state, to_device
from riprap.guards._base import BehaviorGuard, GuardView
from riprap.guards.regularization._penalty import Penalty
from riprap.guards.regularization._probe_outputs import (
    counted_positions,
    last_positions,
    run_probes,
)
from riprap.guards.replay import BatchCycler, CyclingGuard
from riprap.linalg import Vector, sum_vectors, upcast
from riprap.signals.outputs import kl


@dataclass
class KL(Penalty, BehaviorGuard, CyclingGuard):
    """Penalty λ · mean KL(p_θ₀ ‖ p_θ), in nats.

    The KL is computed at the last position of each probe, as the mean over a behavior's rows, then
    over behaviors. With `batches` it is computed at all counted positions of one batch a step. The
    reference is stored as log-probabilities and takes positions × vocabulary × 4 bytes: use chosen
    prompts, not a corpus.

    At θ₀ the penalty's gradient is 0; it acts only after the answers have changed.

    Args:
        behaviors: behaviors whose probes are read, as objects or names; None: all monitored ones,
            or none if `batches` are given.
        batches: model inputs by name, as in `model(**batch)`. Counted positions are those that
            predict a label (not −100) if there are `labels`, else those of `attention_mask`, else
            all.

    Source: the forgetting penalty of Li and Hoiem, 1606.09282 (on logits of old tasks), with the
    divergence of the KL term in RLHF and most fine-tuning studies. A variant of both.

    Raises:
        ConfigError: a batch has no counted position; in `start`, a margin does not run the model.
    """

    batches: Sequence[Mapping[str, Any]] | None = None
    references: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "kl"
    goal: ClassVar[str] = "the initial answers"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1606.09282"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches is not None:
            self.cycler = BatchCycler(self.name, self.batches)

    def start(self, view: GuardView) -> None:
        """Store the current log-probabilities: one reference a behavior, then one a batch."""
        super().start(view)
        read_probes = self.batches is None or self.behaviors is not None
        self.protected_behaviors = self.select_behaviors(view) if read_probes else []
        model, device = view.model, device_of(view.model)
        with torch.inference_mode(False), torch.no_grad(), preserve_training_state(model):
            references = [self._probe_log_probs(model, b) for b in self.protected_behaviors]
            batches = (to_device(batch, device) for batch in self.batches or [])
            references += [self._batch_log_probs(model, batch) for batch in batches]
        self.references = references

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute the mean KL and its gradient."""
        count = len(self.protected_behaviors)
        by_name = {
            behavior.name: self._term(
                view, self._probe_log_probs, behavior, self.references[at], 1 / count
            )
            for at, behavior in enumerate(self.protected_behaviors)
        }
        terms = self.finite_terms(by_name, "the KL")
        if self.cycler is not None:
            reference = self.references[count + self.cycler.position]
            batch = self.cycler.next_batch(view.model)
            terms.append(self._term(view, self._batch_log_probs, batch, reference, 1.0))
        gradients = [gradient for _, gradient in terms if gradient is not None]
        if not gradients:
            raise self._error("the answers depend on no trained parameter")
        return sum(value for value, _ in terms), sum_vectors(gradients)

    def _term(
        self,
        view: GuardView,
        log_probs: Callable[[nn.Module, Any], Tensor],
        source: Behavior | Mapping[str, Any],
        reference: Tensor,
        weight: float,
    ) -> tuple[float, Vector | None]:
        """Compute the weighted KL on one behavior or batch, and its gradient."""

        def loss(model: nn.Module, source: Any) -> Tensor:
            current = log_probs(model, source)
            return weight * kl(reference.to(current), current)

        return loss_and_gradient(loss, view.model, source, view.parameters)

    def _probe_log_probs(self, model: nn.Module, behavior: Behavior) -> Tensor:
        """Return log-probabilities after each probe, shape (rows, vocabulary)."""
        return last_positions(run_probes(self.name, behavior, model).logits).log_softmax(-1)

    def _batch_log_probs(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return log-probabilities at the counted positions, shape (positions, vocabulary)."""
        with raise_on_all_ranks(model):
            logits = logits_of(model(**{k: v for k, v in batch.items() if k != "labels"}))
        return torch.log_softmax(upcast(logits[counted_positions(self.name, batch, logits)]), -1)
