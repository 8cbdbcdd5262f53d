"""KL divergence of the model's answers from those it gave at the start."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from riprap.signals._base import Signal, ProbeView, not_run
from riprap.types import Reading


def kl(reference: Tensor, now: Tensor) -> Tensor:
    """KL(reference ‖ now), mean over rows, in nats.

    Args:
        reference, now: log-probabilities, shape (n, vocabulary).
    """
    return functional.kl_div(now, reference, reduction="batchmean", log_target=True)


class KLToStart(Signal):
    """KL both ways at the last position of each probe, mean over probes, in nats.

    `kl_start` = KL(p_θ₀ ‖ p_θ) grows where the model no longer says what it said; `kl_from_start`
    = KL(p_θ ‖ p_θ₀) where it says what it never would have. Keeps the start's log-probabilities
    of those positions, rows × vocabulary a behaviour.
    """

    name = "kl_start"

    def __init__(self) -> None:
        self.references: dict[str, Tensor] = {}

    def start(self, view: ProbeView) -> None:
        """Keep the answers of the start."""
        for name, look in view.results.items():
            if look.logits is not None and look.logits.shape[1] > 1:
                self.references[name] = torch.log_softmax(look.logits, -1)

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """Two readings a behaviour whose logits were seen."""
        readings = []
        for name, look in view.results.items():
            reference = self.references.get(name)
            if reference is None:
                why = (
                    "no logits were seen: the margin does not call the model itself, or it has none"
                )
                readings += [not_run(view.step, name, self.name, why)] * (view.step == 0)
            elif look.logits is None or look.logits.shape != reference.shape:
                readings.append(not_run(view.step, name, self.name, "the probes changed shape"))
            else:
                now = torch.log_softmax(look.logits, -1)
                both = {self.name: kl(reference, now), "kl_from_start": kl(now, reference)}
                readings += [
                    Reading.of(view.step, name, signal, float(value), "nats")
                    for signal, value in both.items()
                ]
        return readings
