"""Features of a sparse autoencoder of the middle layer, carried along the tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from experiments.continual_real.measure import AUTOCAST, autocast
from experiments.continual_real.plan import Deep
from experiments.continual_real.rows import Row, collate
from experiments.harness.ranks import roc_area
from riprap.behaviors import Behavior
from riprap.evaluation import evaluate, find_layer, preserve_training_state
from riprap.signals.features import TopKSAE, jaccard, unexplained_variance

ROWS = 32  # in a pass over the rows that train the autoencoder


@dataclass
class Use:
    """Activations of refused prompts at one moment, under the base's autoencoder.

    Attributes:
        l0: active latents of a prompt; at most `Deep.active` by construction.
        explained: share of the variance that is explained.
        overlap: of a prompt's active latents with those at the base; 1: the same.
        kept: mean activation of the latents of refusal, as a share of that at the base; `others`:
            the same of as many other latents.
        shares: share of the prompts that use each latent of refusal.
    """

    l0: float
    explained: float
    overlap: float
    kept: float
    others: float
    shares: list[float] = field(default_factory=list)


@dataclass
class Carried:
    """The autoencoder after a task, trained further on the activations of that moment.

    The control is trained as long on the base's activations: what training alone moves.

    Attributes:
        explained: share of the variance of the training tokens that is explained, by the
            autoencoder of the base; `updated`: by the carried one, after its update.
        dead: share of its latents that no training token uses.
        cosine, refusal: mean cosine of its directions with those at the base: all that the base
            uses, and those of refusal; `control`, `refusal_control`: the same of the control.
        cosines: of each latent of refusal.
        shares: share of the refused prompts that use each latent of refusal.
    """

    explained: float
    updated: float
    dead: float
    cosine: float
    refusal: float
    control: float
    refusal_control: float
    cosines: list[float]
    shares: list[float]


class Features:
    """A sparse autoencoder of a model's middle layer, and the latents that refusal uses.

    Args:
        model: the base.
        unseen: behaviors on prompts that the base refuses, and on prompts that it answers; the
            refused ones are read along the run.
        chosen_by: the same on other prompts, which choose the latents of refusal; their last tokens
            all train the autoencoder, their other tokens may be drawn.
        rows: whose tokens train the autoencoder; the first of each row is left out, since its
            activations are far larger than all others.

    Attributes:
        base, carried, control: the autoencoder of the base; see `Carried`.
        latents: numbers of the latents of refusal, whose activations tell refused prompts, where
            they are larger, from harmless ones the best.
        areas: their areas under the ROC curve on the unseen prompts.
        others: as many other latents, with the largest mean activation on the unseen refused
            prompts at the base: the control.
        start: activations of the latents on the unseen refused prompts at the base.
        refused_shares, harmless_shares: share of the unseen prompts that use each of `latents`.
    """

    def __init__(
        self,
        model: nn.Module,
        unseen: Sequence[Behavior],
        chosen_by: Sequence[Behavior],
        rows: Sequence[Row],
        pad: int,
        deep: Deep,
        seed: int,
    ) -> None:
        self.deep, self.refused = deep, unseen[0]
        prompts = [ids for one in chosen_by for ids in one.token_rows() or []]
        rows = [*rows, *(Row(0, "", tuple(ids), ()) for ids in prompts)]
        self.batches = [
            collate(rows[at : at + ROWS], pad, whole=True) for at in range(0, len(rows), ROWS)
        ]
        self.masks = [_without_first(batch["attention_mask"]) for batch in self.batches]
        sizes = torch.cat([mask.sum(1) for mask in self.masks])
        order = torch.from_numpy(np.random.default_rng(seed).permutation(int(sizes.sum())))
        ends = sizes.cumsum(0) - 1  # the last token of each row
        self.chosen = torch.cat([order[: deep.tokens], ends[len(ends) - len(prompts) :]]).unique()
        self.tokens = self._activations(model)
        self.center = self.tokens.mean(0)
        self.base = TopKSAE.initialize(self.tokens, deep.latents, deep.active, seed)
        self.base.train(self.tokens, deep.steps, deep.rate)
        self.carried, self.control = self.base.copy(), self.base.copy()
        self.alive = (self.base.encode(self.tokens) > 0).any(0)
        refused, harmless = (self.base.encode(self._prompts(model, one)) for one in unseen)
        areas = _areas(*(self.base.encode(self._prompts(model, one)) for one in chosen_by))
        self.latents = areas.topk(deep.refusing).indices
        self.areas = _areas(refused, harmless)[self.latents].tolist()
        self.start = refused
        ranked = refused.double().mean(0)
        ranked[self.latents] = -1
        self.others = ranked.topk(deep.refusing).indices
        self.refused_shares, self.harmless_shares = (
            _shares(part)[self.latents].tolist() for part in (refused, harmless)
        )

    def use(self, activations: Tensor) -> Use:
        """Return what activations of the refused prompts show; shape (n_probes, d)."""
        latents = self.base.encode(activations)
        return Use(
            l0=float((latents > 0).sum(1).double().mean()),
            explained=1 - unexplained_variance(activations, self.base.decode(latents), self.center),
            overlap=jaccard(latents, self.start),
            kept=self._kept(latents, self.latents),
            others=self._kept(latents, self.others),
            shares=_shares(latents)[self.latents].tolist(),
        )

    def _kept(self, latents: Tensor, own: Tensor) -> float:
        start, now = (float(part.double().mean(0)[own].sum()) for part in (self.start, latents))
        return now / start if start else math.nan

    def update(self, model: nn.Module) -> Carried:
        """Train the autoencoder further on a model's activations, and say where it went."""
        deep, tokens = self.deep, self._activations(model)
        before = self._explained(self.base, tokens)
        self.carried.train(tokens, deep.update_steps, deep.update_rate)
        self.control.train(self.tokens, deep.update_steps, deep.update_rate)
        used = self.carried.encode(tokens) > 0
        cosines = cosine_similarity(self.carried.W_dec, self.base.W_dec, dim=1)
        controls = cosine_similarity(self.control.W_dec, self.base.W_dec, dim=1)
        shares = _shares(self.carried.encode(self._prompts(model, self.refused)))
        return Carried(
            explained=before,
            updated=self._explained(self.carried, tokens),
            dead=1 - float(used.any(0).double().mean()),
            cosine=float(cosines[self.alive].mean()),
            refusal=float(cosines[self.latents].mean()),
            control=float(controls[self.alive].mean()),
            refusal_control=float(controls[self.latents].mean()),
            cosines=cosines[self.latents].tolist(),
            shares=shares[self.latents].tolist(),
        )

    def _explained(self, sae: TopKSAE, tokens: Tensor) -> float:
        return 1 - unexplained_variance(tokens, sae.decode(sae.encode(tokens)), tokens.mean(0))

    def _prompts(self, model: nn.Module, behavior: Behavior) -> Tensor:
        layer = middle(model)
        return evaluate(behavior, model, layers=[layer], autocast=AUTOCAST).activations[layer]

    @torch.no_grad()
    def _activations(self, model: nn.Module) -> Tensor:
        """Return the activations of the training tokens, shape (tokens, d)."""
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        handle = model.get_submodule(middle(model)).register_forward_hook(keep)
        try:
            with preserve_training_state(model), autocast():
                for batch in self.batches:
                    asked = {name: batch[name] for name in ("input_ids", "attention_mask")}
                    model(**asked, logits_to_keep=1)
        finally:
            handle.remove()
        rows = [output[mask].float() for mask, output in zip(self.masks, outputs, strict=True)]
        return torch.cat(rows)[self.chosen]


def _without_first(attention_mask: Tensor) -> Tensor:
    """Return which tokens of the rows are read: all but the first of each."""
    mask = attention_mask.bool()
    mask[torch.arange(len(mask)), attention_mask.argmax(1)] = False
    return mask


def _shares(latents: Tensor) -> Tensor:
    """Return the share of the prompts that use each latent."""
    return (latents > 0).double().mean(0)


def _areas(refused: Tensor, harmless: Tensor) -> Tensor:
    """Return the area under the ROC curve of each latent."""
    return torch.from_numpy(roc_area(refused.numpy(), harmless.numpy()))


def middle(model: nn.Module) -> str:
    """Return the name of a model's middle layer."""
    layer = find_layer(model)
    assert layer is not None
    return layer
