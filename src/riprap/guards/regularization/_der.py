"""DER++: match the stored logits of old examples, and learn their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap.behaviors import device_of, logits_of
from riprap.evaluation import loss_and_gradient, preserve_training_state, to_device
from riprap.guards._base import GuardView
from riprap.guards.regularization._penalty import Penalty
from riprap.guards.replay import BatchGuard, split_labels
from riprap.linalg import Vector, upcast
from riprap.selection import IGNORE_INDEX


@dataclass
class DERpp(Penalty, BatchGuard):
    """Penalty λ (α · mean (z − z*)² + β · cross-entropy), on old examples with stored logits z*.

    z* are the logits of the model at the start of the first watch that has the batch: add the
    batches of a task to `batches` when it has been learned, and use the same guard for the next.

    Args:
        batches: old examples, each a pair (model inputs, labels) or a mapping with `labels`: shape
            (n,) for a classifier; (n, T) for a language model, where position t predicts label
            t + 1, and −100 is not counted.
        alpha: α. The mean is over examples (or counted positions) and logits. The authors use 0.1
            to 1; the square is not bounded, so that a large α slows new learning.
        beta: β; 0 is DER, which uses no labels.

    Source: Buzzega et al., 2004.07211, eq. 6, with the mean square of their code. Simplified:
    one batch for both terms, read in turn and in evaluation mode, and logits stored at the end of
    a task, not along its training.

    Raises:
        ConfigError: there is no batch, or α or β is negative, or both are 0; in `start`, a batch
            has no labels, or they do not fit the logits.
    """

    alpha: float = 0.1
    beta: float = 0.5
    references: list[Tensor] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "der_pp"
    goal: ClassVar[str] = "the stored answers"
    field_of_origin: ClassVar[str] = "continual learning"
    source: ClassVar[str] = "2004.07211"
    fidelity: ClassVar[str] = "simplified"
    state_attrs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        Penalty.__post_init__(self)
        BatchGuard.__post_init__(self)
        if not (self.alpha >= 0 and self.beta >= 0 and self.alpha + self.beta > 0):
            raise self._error(
                f"alpha={self.alpha}, beta={self.beta}; both must be 0 or more, and one above 0"
            )

    def start(self, view: GuardView) -> None:
        """Store the logits of the batches that have none yet."""
        super().start(view)
        device = device_of(view.model)
        with torch.inference_mode(False), torch.no_grad(), preserve_training_state(view.model):
            for batch in self.batches[len(self.references) :]:
                logits, _ = self._counted(view.model, to_device(batch, device))
                self.references.append(logits)

    def penalty(self, view: GuardView) -> tuple[float, Vector | None]:
        """Compute the penalty on the next batch and its gradient."""
        reference = self.references[self.cycler.position]
        batch = self.cycler.next_batch(view.model)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            logits, labels = self._counted(model, batch)
            distance = functional.mse_loss(logits, reference.to(logits))
            return self.alpha * distance + self.beta * functional.cross_entropy(logits, labels)

        value, gradient = loss_and_gradient(loss, view.model, batch, view.parameters)
        if gradient is None:
            raise self._error("the logits depend on no trained parameter")
        return value, gradient

    def _counted(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the logits and labels of all counted positions, (positions, classes) and (…,)."""
        inputs, labels = split_labels(self.name, batch)
        logits = logits_of(model(**inputs) if isinstance(inputs, Mapping) else model(inputs))
        if logits.dim() == 3 and labels.dim() == 2:
            logits, labels = logits[:, :-1], labels[:, 1:]
        elif logits.dim() == 3 and labels.dim() == 1:
            logits = logits[:, -1]
        if logits.shape[:-1] != labels.shape:
            raise self._error(
                f"the logits have shape {tuple(logits.shape)}, the labels {tuple(labels.shape)}; "
                "give one label for each row, or for each token"
            )
        counted = labels != IGNORE_INDEX
        if not bool(counted.any()):
            raise self._error("a batch has no label to learn: all are −100")
        return upcast(logits[counted]), labels[counted]

    def add(self, batches: Sequence[Any]) -> None:
        """Add old examples; their logits are stored at the start of the guard's next watch."""
        self.batches = [*self.batches, *batches]
        BatchGuard.__post_init__(self)
