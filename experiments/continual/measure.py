"""Measurements after each stage: behaviors, outputs, and the direction of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.worlds.continual import ContinualWorld
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.guards.regularization import counted_positions
from riprap.signals.gradients import top_coordinates, values_at
from riprap.signals.outputs import kl


@dataclass(frozen=True)
class StageMeasures:
    """Measures of one stage; see `simulate.Run`."""

    scores: dict[str, float]
    margins: dict[str, float]
    outputs: dict[str, float]
    alignment: dict[str, float]


def linear_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights that an adapter can change: those of the linear layers in the blocks."""
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("lm_head")
    ]


class StageMeter:
    """Compares a model with the aligned and the pretrained model.

    Args:
        pretrained, aligned: models before the first stage.
        k: number of coordinates of the TopK cosine (arXiv 2604.17215, eq. 9), among the linear
            weights that adapters change.
    """

    def __init__(
        self, world: ContinualWorld, pretrained: nn.Module, aligned: nn.Module, k: int
    ) -> None:
        self.behaviors = world.unseen()
        self.fixed = world.fixed()
        self.start = copied(linear_weights(aligned))
        before = copied(linear_weights(pretrained))
        self.back = [one - two for one, two in zip(before, self.start, strict=True)]
        self.coordinates = top_coordinates(before, self.start, k)
        self.references = {
            "pretrained": self._log_probs(pretrained.eval()),
            "aligned": self._log_probs(aligned.eval()),
        }
        self.last = self.start

    def __call__(self, model: nn.Module) -> StageMeasures:
        """Measure a merged model in evaluation mode; the next stage starts here."""
        margins = {one.name: evaluate(one, model).margins for one in self.behaviors}
        now = copied(linear_weights(model))
        moved = [one - two for one, two in zip(now, self.start, strict=True)]
        stage = [one - two for one, two in zip(now, self.last, strict=True)]
        self.last = now
        return StageMeasures(
            scores={name: score(values) for name, values in margins.items()},
            margins={name: float(values.mean()) for name, values in margins.items()},
            outputs=self._outputs(model),
            alignment=self.towards(moved) | {"topk_stage": self.towards(stage)["topk"]},
        )

    def towards(self, moved: Sequence[Tensor]) -> dict[str, float]:
        """Cosine of a movement of the linear weights with θ_pre − θ_aligned; 1 is straight back.

        Returns:
            `topk`, over the chosen coordinates, and `whole`; 0 without a movement.
        """
        chosen = cosine(values_at(moved, self.coordinates), values_at(self.back, self.coordinates))
        flat = [torch.cat([part.reshape(-1) for part in one]) for one in (moved, self.back)]
        return {"topk": chosen, "whole": cosine(flat[0].double(), flat[1].double())}

    @torch.no_grad()
    def _log_probs(self, model: nn.Module) -> Tensor:
        """Return log-probabilities at the fixed prompts' response positions, (positions, v)."""
        inputs = {name: value for name, value in self.fixed.items() if name != "labels"}
        logits = model(**inputs).logits
        return torch.log_softmax(logits[counted_positions(self.fixed, logits)], -1)

    def _outputs(self, model: nn.Module) -> dict[str, float]:
        now = self._log_probs(model)
        divergences = {}
        for name, then in self.references.items():
            divergences[f"from {name}"] = float(kl(then, now))
            divergences[f"to {name}"] = float(kl(now, then))
        return divergences


def copied(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return detached copies, which later training does not change."""
    return [weight.detach().clone() for weight in weights]


def cosine(one: Tensor, other: Tensor) -> float:
    """Cosine of two vectors; 0 if one of them is 0."""
    both = float(one.norm() * other.norm())
    return float(one @ other) / both if both else 0.0
