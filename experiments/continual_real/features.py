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
        kept: use of the latents of refusal, as a share of that at the base; `others`: the same of
            as many other latents.
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
        refused, harmless: behaviors on prompts that the base refuses, and answers; both unseen.
        rows: whose tokens train the autoencoder; the first of each row is left out, since its
            activations are as large as no other's.

    Attributes:
        base, carried, control: the autoencoder of the base; see `Carried`.
        latents: numbers of the latents of refusal; `others`: as many of those that are not, which
            the refused prompts use the most at the base: the control.
        refused_shares, harmless_shares: share of the prompts that use each of them at the base.
    """

    def __init__(
        self,
        model: nn.Module,
        refused: Behavior,
        harmless: Behavior,
        rows: Sequence[Row],
        pad: int,
        deep: Deep,
        seed: int,
    ) -> None:
        self.deep, self.refused = deep, refused
        self.batches = [
            collate(rows[at : at + ROWS], pad, whole=True) for at in range(0, len(rows), ROWS)
        ]
        count = sum(
            int(batch["attention_mask"].sum()) - len(batch["labels"]) for batch in self.batches
        )
        order = np.random.default_rng(seed).permutation(count)
        self.chosen = torch.from_numpy(np.sort(order[: deep.tokens]))
        self.tokens = self._activations(model)
        self.center = self.tokens.mean(0)
        self.base = TopKSAE.initialize(self.tokens, deep.latents, deep.active, seed)
        self.base.train(self.tokens, deep.steps, deep.rate)
        self.carried, self.control = self.base.copy(), self.base.copy()
        self.alive = (self.base.encode(self.tokens) > 0).any(0)
        prompts = self._prompts(model, refused)
        self.start = self.base.encode(prompts) > 0
        own, other = (
            self._shares(self.start),
            self._shares(self.base.encode(self._prompts(model, harmless)) > 0),
        )
        self.latents = torch.nonzero(own - other >= deep.specific).flatten()
        ranked = own.clone()
        ranked[self.latents] = -1
        self.others = ranked.topk(min(len(self.latents), len(own) - len(self.latents))).indices
        self.others_start = float(own[self.others].sum())
        self.refused_shares, self.harmless_shares = (
            part[self.latents].tolist() for part in (own, other)
        )

    def use(self, activations: Tensor) -> Use:
        """Return what activations of the refused prompts show; shape (n_probes, d)."""
        latents = self.base.encode(activations)
        active = latents > 0
        every = self._shares(active)
        shares, others = every[self.latents], every[self.others]
        start = sum(self.refused_shares)
        return Use(
            l0=float(active.sum(1).double().mean()),
            explained=1 - unexplained_variance(activations, self.base.decode(latents), self.center),
            overlap=jaccard(latents, self.start),
            kept=float(shares.sum()) / start if start else math.nan,
            others=float(others.sum()) / self.others_start if self.others_start else math.nan,
            shares=shares.tolist(),
        )

    def update(self, model: nn.Module) -> Carried:
        """Train the autoencoder further on a model's activations, and say where it went."""
        deep, tokens = self.deep, self._activations(model)
        before = self._explained(self.base, tokens)
        self.carried.train(tokens, deep.update_steps, deep.update_rate)
        self.control.train(self.tokens, deep.update_steps, deep.update_rate)
        used = self.carried.encode(tokens) > 0
        cosines = cosine_similarity(self.carried.W_dec, self.base.W_dec, dim=1)
        controls = cosine_similarity(self.control.W_dec, self.base.W_dec, dim=1)
        shares = self._shares(self.carried.encode(self._prompts(model, self.refused)) > 0)
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

    def _shares(self, active: Tensor) -> Tensor:
        return active.double().mean(0)

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
        rows = []
        for batch, output in zip(self.batches, outputs, strict=True):
            mask = batch["attention_mask"].bool()
            first = mask.long().argmax(1)
            mask[torch.arange(len(mask)), first] = False
            rows.append(output[mask].float())
        return torch.cat(rows)[self.chosen]


def middle(model: nn.Module) -> str:
    """Return the name of a model's middle layer."""
    layer = find_layer(model)
    assert layer is not None
    return layer
