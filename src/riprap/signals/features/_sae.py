"""SAE features: which entries of a sparse dictionary a behaviour uses, and whether that changes."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from riprap.errors import ConfigError
from riprap.signals._base import NAME_A_LAYER, Signal, VisitView, no_rows, not_run
from riprap.signals.features._dictionary import TopKSAE, jaccard, unexplained
from riprap.types import RUN, Reading

MOST_LATENTS = 1024
STEPS, RATE = 300, 1e-2  # at the start
CARRY_STEPS, CARRY_RATE = 10, 3e-3  # at each visit
DENSE = 0.25  # of the latents; a dictionary that uses more of them is not sparse


class SAEFeatures(Signal):
    """A sparse autoencoder trained at θ₀ on the behaviours' activations, and carried along.

    At each visit a copy of the last dictionary is trained a few steps more, as SAE-Track does from
    checkpoint to checkpoint (2412.17626); the dictionary is TopK (2406.04093), small, and without
    the auxiliary loss that revives dead latents: a variant. A few probes make a weak dictionary:
    it describes those rows, not the layer. Give `activations`, or a ready `sae`, for a better one.

    Readings of a behaviour: `sae_l0`, latents active in a row; `sae_loss`, share of variance left
    unexplained; `sae_jaccard`, overlap of a row's active sets now and at θ₀. Of the run:
    `sae_dead`, share of latents that no row activates; `sae_decoder_cosine`, mean cosine of today's
    directions with those of θ₀, over latents that were alive there.

    Costs some 300 passes of the autoencoder at the start and 10 a visit, over all rows at once.

    Args:
        latents: size of the dictionary; None: four times the width of the layer, at most 1024.
        k: latents that a row may use; None: a thirty-second of them.
        activations: more rows of the same layer at θ₀, shape (n, d), to train on at the start.
        sae: a ready one with `encode`, `decode` and `W_dec`. A `TopKSAE` is carried along; any
            other stays as it is, and has no `sae_decoder_cosine`.

    Raises (at the start):
        ConfigError: `activations` or `sae` are of another width than the layer.
    """

    name = "sae"

    def __init__(
        self,
        latents: int | None = None,
        k: int | None = None,
        activations: Tensor | None = None,
        sae: Any = None,
    ) -> None:
        self.latents, self.k = latents, k
        self.activations = activations
        self.given = sae
        self.first: Any = None
        self.now: Any = None
        self.used: dict[str, Tensor] = {}
        self.alive: Tensor | None = None
        self.seen: Tensor | None = None

    @classmethod
    def from_sae_lens(cls, release: str, sae_id: str, **options: Any) -> SAEFeatures:
        """With a pretrained dictionary, by way of the optional package sae-lens.

        Args:
            release, sae_id, options: as `sae_lens.SAE.from_pretrained` takes them.

        Raises:
            ConfigError: sae-lens is not installed.
        """
        try:
            package = importlib.import_module("sae_lens")
        except ImportError as error:
            raise ConfigError(
                "pretrained SAEs need the package sae-lens: pip install 'riprap[sae]'"
            ) from error
        loaded = package.SAE.from_pretrained(release=release, sae_id=sae_id, **options)
        # Versions before 6 give (sae, configuration, sparsity).
        return cls(sae=loaded[0] if isinstance(loaded, tuple) else loaded)

    def start(self, view: VisitView) -> None:
        """Train the dictionary, or take the one given, and fix the active sets of θ₀."""
        rows = _rows(view)
        if not rows:
            return
        pooled = torch.cat(list(rows.values()))
        self.first = self.given if self.given is not None else self._trained(pooled)
        width = self.first.W_dec.shape[1]
        if width != pooled.shape[1]:
            raise ConfigError(
                f"the SAE takes rows of width {width}, layer {view.layer} puts out "
                f"{pooled.shape[1]}: name the layer it was made for, Monitor(..., layer=...)"
            )
        self.now, self.seen = self.first, pooled
        self.used = {name: _latents(self.first, own) > 0 for name, own in rows.items()}
        used = torch.cat(list(self.used.values()))
        self.alive = used.any(0)
        if _is_dense(active := float(used.sum(1).double().mean()), used.shape[1]):
            warnings.warn(f"riprap: {_dense(active, used.shape[1])}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """The dictionaries that were trained here, and the active sets of θ₀."""
        trained = isinstance(self.first, TopKSAE)
        return {
            "first": asdict(self.first) if trained else None,
            "now": asdict(self.now) if trained else None,
            "used": dict(self.used),
            "alive": self.alive,
            "seen": self.seen,
        }

    def load_state_dict(self, state: dict[str, Any], parameters: list[Tensor]) -> None:
        """Take over what `state_dict` gave; a ready dictionary is the one given again."""
        known = state["first"] is not None
        self.first = TopKSAE(**state["first"]) if known else self.given
        self.now = TopKSAE(**state["now"]) if known else self.given
        self.used, self.alive, self.seen = state["used"], state["alive"], state["seen"]

    def on_visit(self, view: VisitView) -> list[Reading]:
        """Carry the dictionary along, and read it."""
        rows = _rows(view)
        missing = [
            not_run(
                0, b.name, self.name, NAME_A_LAYER if view.layer is None else no_rows(view.layer)
            )
            for b in view.behaviors
            if b.name not in rows and view.step == 0
        ]
        if self.first is None or not rows:
            return missing
        self._carry(torch.cat(list(rows.values())))
        latents = {name: _latents(self.now, own) for name, own in rows.items()}
        return missing + self._of_behaviors(view, rows, latents) + self._of_run(view, latents)

    def _trained(self, pooled: Tensor) -> TopKSAE:
        rows = pooled
        if self.activations is not None:
            if self.activations.dim() != 2 or self.activations.shape[1] != pooled.shape[1]:
                raise ConfigError(
                    f"SAEFeatures(activations=...) of shape {tuple(self.activations.shape)}; "
                    f"the layer puts out rows of width {pooled.shape[1]}"
                )
            rows = torch.cat([pooled, self.activations.to(pooled)])
        latents = self.latents or min(4 * pooled.shape[1], MOST_LATENTS)
        sae = TopKSAE.begin(rows, latents, self.k or max(latents // 32, 1))
        sae.train(rows, STEPS, RATE)
        return sae

    def _carry(self, pooled: Tensor) -> None:
        """Train on today's rows; rows that have not changed have nothing to teach."""
        known = self.seen is not None and torch.equal(self.seen, pooled)
        if not isinstance(self.now, TopKSAE) or known:
            return
        self.now, self.seen = self.now.copy(), pooled
        self.now.train(pooled, CARRY_STEPS, CARRY_RATE)

    def _of_behaviors(
        self, view: VisitView, rows: Mapping[str, Tensor], latents: Mapping[str, Tensor]
    ) -> list[Reading]:
        layer, readings = view.layer or "", []
        centre = torch.cat(list(rows.values())).mean(0)
        for name, own in rows.items():
            active = latents[name]
            count = float((active > 0).sum(1).double().mean())
            l0 = Reading.of(view.step, name, "sae_l0", count, "latents", layer)
            if _is_dense(count, active.shape[1]):
                l0 = replace(l0, detail=_dense(count, active.shape[1]))
            loss = unexplained(own, self._decoded(active).to(own), centre)
            readings += [l0, Reading.of(view.step, name, "sae_loss", loss, "share", layer)]
            then = self.used.get(name)
            if then is not None and then.shape == active.shape:
                overlap = jaccard(active, then)
                readings.append(Reading.of(view.step, name, "sae_jaccard", overlap, "share", layer))
        return readings

    def _of_run(self, view: VisitView, latents: Mapping[str, Tensor]) -> list[Reading]:
        layer, used = view.layer or "", torch.cat(list(latents.values())) > 0
        dead = 1 - float(used.any(0).double().mean())
        readings = [Reading.of(view.step, RUN, "sae_dead", dead, "share", layer)]
        if isinstance(self.now, TopKSAE) and self.alive is not None and self.alive.any():
            turned = cosine_similarity(self.now.W_dec, self.first.W_dec, dim=1)
            mean = float(turned[self.alive].double().mean())
            readings.append(Reading.of(view.step, RUN, "sae_decoder_cosine", mean, "cosine", layer))
        return readings

    def _decoded(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return self.now.decode(latents).detach()


def _rows(view: VisitView) -> dict[str, Tensor]:
    """Activations at the layer of each behaviour that has some, shape (rows, d)."""
    if view.layer is None:
        return {}
    found = {b.name: view.looks[b.name].activations.get(view.layer) for b in view.behaviors}
    return {name: rows for name, rows in found.items() if rows is not None}


def _latents(sae: Any, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return sae.encode(rows.to(sae.W_dec)).detach()


def _is_dense(active: float, latents: int) -> bool:
    return active > DENSE * latents


def _dense(active: float, latents: int) -> str:
    return f"the SAE is dense: a row uses {active:.0f} of {latents} latents, more than a quarter"
