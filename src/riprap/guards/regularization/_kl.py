"""KL: the model's answers on chosen prompts are held near to those of the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from riprap._distributed import raise_on_all_ranks
from riprap.behaviors import Behavior, device_of, logits_of
from riprap.errors import ConfigError
from riprap.evaluation import to_device, preserve_training_state
from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import BehaviorGuard, Penalty, sum_vectors
from riprap.guards.regularization._probe_outputs import run_probes, last_positions, full, taken
from riprap.guards.replay import CyclingGuard, BatchCycler
from riprap.linalg import Vector
from riprap.signals.outputs import kl


@dataclass
class KL(Penalty, BehaviorGuard, CyclingGuard):
    """Adds λ · mean KL(p_θ₀ ‖ p_θ), in nats.

    Read at the last position of each probe, mean over a behaviour's rows, then over behaviours; or,
    where `batches` are given, at all positions that count, one batch a step. The reference is kept
    as log-probabilities, positions × vocabulary × 4 bytes in memory: chosen prompts, not a corpus.

    At θ₀ itself the penalty is flat: it pulls only once something has moved.

    Args:
        behaviors: whose probes; None: all that are watched, or none where there are batches.
        batches: model inputs by name, as `model(**batch)` takes them. Positions that predict a
            label count where there are `labels` (−100 is none), else those of `attention_mask`,
            else all.

    Source: the forgetting penalty of Li and Hoiem, 1606.09282 (on logits of old tasks), with the
    divergence of RLHF's and most fine-tuning studies' KL term. A variant of both.

    Raises:
        ConfigError: there is nothing to read (at the start: a margin does not run the model).
    """

    batches: Sequence[Mapping[str, Any]] | None = None
    references: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "kl"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "1606.09282"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches is not None:
            self.cycler = BatchCycler(self.name, self.batches)

    def start(self, view: GuardView) -> None:
        """Keep what the model answers now: a reference for each behaviour, then for each batch."""
        wanted = self.batches is None or self.behaviors is not None
        self.protected_behaviors = self.select_behaviors(view) if wanted else []
        device = device_of(view.model)
        with torch.inference_mode(False), torch.no_grad(), preserve_training_state(view.model):
            found = [self._probe_log_probs(one, view.model) for one in self.protected_behaviors]
            found += [
                self._batch_log_probs(to_device(batch, device), view.model) for batch in self.batches or []
            ]
        self.references = found

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """The mean KL and its gradient."""
        count = len(self.protected_behaviors)
        reads = [partial(self._probe_log_probs, one, view.model) for one in self.protected_behaviors]
        wanted = [(read, self.references[at], 1 / count) for at, read in enumerate(reads)]
        if self.cycler is not None:
            then = self.references[count + self.cycler.position]
            batch = self.cycler.next_batch(view.model)
            wanted.append((partial(self._batch_log_probs, batch, view.model), then, 1.0))
        parts = [taken(partial(_kl_to_start, *one), view.model, view.parameters) for one in wanted]
        gradients = [gradient for _, gradient in parts if gradient is not None]
        if not gradients:
            raise ConfigError(f"guard {self.name}: the answers depend on no trained parameter")
        return sum(value for value, _ in parts), sum_vectors(gradients)

    def _probe_log_probs(self, behavior: Behavior, model: nn.Module) -> Tensor:
        logits = last_positions(run_probes(self.name, behavior, model).logits)
        return torch.log_softmax(logits, -1)

    def _batch_log_probs(self, batch: Mapping[str, Any], model: nn.Module) -> Tensor:
        """Log-probabilities at the positions that count, shape (positions, vocabulary)."""
        with raise_on_all_ranks(model):
            logits = logits_of(model(**{k: v for k, v in batch.items() if k != "labels"}))
        return torch.log_softmax(full(logits[counted_positions(batch, logits)]), -1)


def _kl_to_start(read: Callable[[], Tensor], then: Tensor, weight: float) -> Tensor:
    now = read()
    return weight * kl(then.to(now), now)


def counted_positions(batch: Mapping[str, Any], logits: Tensor) -> Tensor:
    """Which positions of a batch count, shape (n, T), boolean.

    Padding never does: it would dilute the mean.

    Raises:
        ConfigError: none of them.
    """
    found = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if batch.get("attention_mask") is not None:
        found &= batch["attention_mask"].bool()
    if batch.get("labels") is not None:
        ahead = batch["labels"][:, 1:] != -100
        found &= torch.nn.functional.pad(ahead, (0, 1), value=False)
    if not bool(found.any()):
        raise ConfigError("guard kl: a batch has no position that counts: all labels are −100")
    return found
