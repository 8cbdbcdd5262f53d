"""KL divergence between the model's outputs now and at the start."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from riprap.signals._base import ProbeView, Signal, not_run
from riprap.types import Reading


def kl(reference: Tensor, now: Tensor) -> Tensor:
    """Compute KL(reference ‖ now), mean over rows, in nats.

    Args:
        reference, now: log-probabilities, shape (n, vocabulary).
    """
    return functional.kl_div(now, reference, reduction="batchmean", log_target=True)


class KLToStart(Signal):
    """KL both ways at the last position of each probe, mean over probes, in nats.

    `kl_start` = KL(p_θ₀ ‖ p_θ) grows where the model no longer gives its former outputs;
    `kl_from_start` = KL(p_θ ‖ p_θ₀) where it gives outputs that were improbable before. Stores the
    log-probabilities of the start, rows × vocabulary per behavior.
    """

    name = "kl_start"
    state_attrs = ("references",)

    def __init__(self) -> None:
        self.references: dict[str, Tensor] = {}

    def start(self, view: ProbeView) -> None:
        """Store the log-probabilities of the start."""
        for name, result in view.results.items():
            if result.logits is not None and result.logits.shape[1] > 1:
                self.references[name] = torch.log_softmax(result.logits, -1)

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Return two readings for each behavior whose logits were read."""
        readings = []
        for name, result in view.results.items():
            reference = self.references.get(name)
            if reference is None:
                reason = "no logits were read: the margin does not call the model, or it has none"
                readings += [not_run(view.step, name, self.name, reason)] * (view.step == 0)
            elif result.logits is None or result.logits.shape != reference.shape:
                readings.append(not_run(view.step, name, self.name, "the probes changed shape"))
            else:
                now = torch.log_softmax(result.logits, -1)
                both = {self.name: kl(reference, now), "kl_from_start": kl(now, reference)}
                readings += [
                    Reading.of(view.step, name, signal, float(value), "nats")
                    for signal, value in both.items()
                ]
        return readings
