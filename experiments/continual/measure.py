"""Measurements after each stage: behaviors, outputs, and the direction of the weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.worlds.continual import CATEGORIES, ContinualWorld
from experiments.worlds.continual_rows import IGNORED, Rows
from riprap.detectors import score
from riprap.evaluation import evaluate
from riprap.selection import gradient_norms
from riprap.signals.gradients import top_coordinates, values_at
from riprap.signals.outputs import kl

AUDITED_ROWS = 240  # of a task
SHARE = 0.2


@dataclass(frozen=True)
class Group:
    """A fifth of the rows of a task at one step of its stage.

    Attributes:
        task, step: where in the plain run; `group`: low, moderate or high gradient norm.
        categories: share of rows by category.
        tokens: mean number of response tokens; `loss`: mean over rows of each one's own mean loss,
            in nats a token; `norm`: mean norm of a row's gradient in the adapter.
        topk, whole: cosine of the group's descent direction, in all linear weights, with the way
            back to the pretrained model (2604.17215, eq. 9, and over all coordinates).
    """

    task: str
    step: int
    group: str
    categories: dict[str, float]
    tokens: float
    loss: float
    norm: float
    topk: float
    whole: float


def audit(model: Any, rows: Rows, measure: StageMeter, task: str, step: int) -> list[Group]:
    """Audit the fifths of rows with lowest, nearest-to-median and highest gradient.

    Args:
        model: a PEFT model during training, which is not affected.
        rows: of which the same `AUDITED_ROWS` are audited for each step.
    """
    generator = torch.Generator().manual_seed(step)
    rows = rows[torch.randperm(len(rows), generator=generator)[:AUDITED_ROWS]]
    norms = gradient_norms(model, rows.batch)
    plain = copy.deepcopy(model).merge_and_unload().eval()
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    weights = linear_weights(plain)
    for weight in weights:
        weight.requires_grad_(True)
    audited = []
    for name, chosen in groups(norms).items():
        own = rows[chosen]
        losses = _losses(plain, own)
        gradient = torch.autograd.grad(losses.mean(), weights)
        shares = own.category.bincount(minlength=len(CATEGORIES)) / len(own)
        audited.append(
            Group(
                task,
                step,
                name,
                dict(zip(CATEGORIES, shares.tolist(), strict=True)),
                float(own.response_tokens.float().mean()),
                float(losses.mean()),
                float(norms[chosen].mean()),
                **measure.toward_pretrained([-part for part in gradient]),
            )
        )
    return audited


def groups(norms: Tensor, share: float = SHARE) -> dict[str, Tensor]:
    """Return the indices of the rows with lowest, nearest-to-median and highest norms.

    Args:
        norms: shape (n,).
    """
    count = max(1, int(share * len(norms)))
    distance = (norms - norms.median()).abs()
    return {
        "low": norms.argsort()[:count],
        "moderate": distance.argsort()[:count],
        "high": norms.argsort(descending=True)[:count],
    }


def _losses(model: nn.Module, rows: Rows) -> Tensor:
    """Return each row's mean loss over its response tokens, shape (n,)."""
    batch = rows.batch
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return each.sum(1) / (labels != IGNORED).sum(1)


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
            alignment=self.toward_pretrained(moved)
            | {"topk_stage": self.toward_pretrained(stage)["topk"]},
        )

    def toward_pretrained(self, moved: Sequence[Tensor]) -> dict[str, float]:
        """Return cosines of a movement of the linear weights with θ_pre − θ_aligned.

        Returns:
            `topk`, over the chosen coordinates, and `whole`; 1 is straight back, 0 no movement.
        """
        chosen = cosine(values_at(moved, self.coordinates), values_at(self.back, self.coordinates))
        flat = [torch.cat([part.reshape(-1) for part in one]) for one in (moved, self.back)]
        return {"topk": chosen, "whole": cosine(flat[0].double(), flat[1].double())}

    @torch.no_grad()
    def _log_probs(self, model: nn.Module) -> Tensor:
        """Return log-probabilities at the fixed prompts' response positions, (positions, v)."""
        inputs = {name: value for name, value in self.fixed.items() if name != "labels"}
        has_label = nn.functional.pad(self.fixed["labels"][:, 1:] != IGNORED, (0, 1), value=False)
        counted = self.fixed["attention_mask"].bool() & has_label
        return torch.log_softmax(model(**inputs).logits[counted], -1)

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
    """Return the cosine of two vectors; 0 if one of them is 0."""
    both = float(one.norm() * other.norm())
    return float(one @ other) / both if both else 0.0
