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
from riprap.signals._base import NO_LAYER, Signal, ProbeView, no_rows_reason, not_run
from riprap.signals.features._dictionary import TopKSAE, jaccard, unexplained_variance
from riprap.types import RUN, Reading

MAX_LATENTS = 1024
STEPS, RATE = 300, 1e-2  # at the start
UPDATE_STEPS, UPDATE_RATE = 10, 3e-3  # at each visit
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
        self.pretrained = sae
        self.start_sae: Any = None
        self.current_sae: Any = None
        self.start_active: dict[str, Tensor] = {}
        self.start_alive: Tensor | None = None
        self.last_rows: Tensor | None = None

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

    def start(self, view: ProbeView) -> None:
        """Train the dictionary, or take the one given, and fix the active sets of θ₀."""
        rows = _activations_by_behavior(view)
        if not rows:
            return
        pooled = torch.cat(list(rows.values()))
        self.start_sae = self.pretrained if self.pretrained is not None else self._train_sae(pooled)
        width = self.start_sae.W_dec.shape[1]
        if width != pooled.shape[1]:
            raise ConfigError(
                f"the SAE takes rows of width {width}, layer {view.layer} puts out "
                f"{pooled.shape[1]}: name the layer it was made for, Monitor(..., layer=...)"
            )
        self.current_sae, self.last_rows = self.start_sae, pooled
        self.start_active = {name: _encode(self.start_sae, own) > 0 for name, own in rows.items()}
        used = torch.cat(list(self.start_active.values()))
        self.start_alive = used.any(0)
        if _is_dense(active := float(used.sum(1).double().mean()), used.shape[1]):
            warnings.warn(f"riprap: {_dense_warning(active, used.shape[1])}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """The dictionaries that were trained here, and the active sets of θ₀."""
        trained = isinstance(self.start_sae, TopKSAE)
        return {
            "first": asdict(self.start_sae) if trained else None,
            "now": asdict(self.current_sae) if trained else None,
            "used": dict(self.start_active),
            "alive": self.start_alive,
            "seen": self.last_rows,
        }

    def load_state_dict(self, state: dict[str, Any], parameters: list[Tensor]) -> None:
        """Take over what `state_dict` gave; a ready dictionary is the one given again."""
        known = state["first"] is not None
        self.start_sae = TopKSAE(**state["first"]) if known else self.pretrained
        self.current_sae = TopKSAE(**state["now"]) if known else self.pretrained
        self.start_active, self.start_alive, self.last_rows = state["used"], state["alive"], state["seen"]

    def on_probes(self, view: ProbeView) -> list[Reading]:
        """Carry the dictionary along, and read it."""
        rows = _activations_by_behavior(view)
        missing = [
            not_run(
                0, b.name, self.name, NO_LAYER if view.layer is None else no_rows_reason(view.layer)
            )
            for b in view.behaviors
            if b.name not in rows and view.step == 0
        ]
        if self.start_sae is None or not rows:
            return missing
        self._update_sae(torch.cat(list(rows.values())))
        latents = {name: _encode(self.current_sae, own) for name, own in rows.items()}
        return missing + self._behavior_readings(view, rows, latents) + self._run_readings(view, latents)

    def _train_sae(self, pooled: Tensor) -> TopKSAE:
        rows = pooled
        if self.activations is not None:
            if self.activations.dim() != 2 or self.activations.shape[1] != pooled.shape[1]:
                raise ConfigError(
                    f"SAEFeatures(activations=...) of shape {tuple(self.activations.shape)}; "
                    f"the layer puts out rows of width {pooled.shape[1]}"
                )
            rows = torch.cat([pooled, self.activations.to(pooled)])
        latents = self.latents or min(4 * pooled.shape[1], MAX_LATENTS)
        sae = TopKSAE.initialize(rows, latents, self.k or max(latents // 32, 1))
        sae.train(rows, STEPS, RATE)
        return sae

    def _update_sae(self, pooled: Tensor) -> None:
        """Train on today's rows; rows that have not changed have nothing to teach."""
        known = self.last_rows is not None and torch.equal(self.last_rows, pooled)
        if not isinstance(self.current_sae, TopKSAE) or known:
            return
        self.current_sae, self.last_rows = self.current_sae.copy(), pooled
        self.current_sae.train(pooled, UPDATE_STEPS, UPDATE_RATE)

    def _behavior_readings(
        self, view: ProbeView, rows: Mapping[str, Tensor], latents: Mapping[str, Tensor]
    ) -> list[Reading]:
        layer, readings = view.layer or "", []
        centre = torch.cat(list(rows.values())).mean(0)
        for name, own in rows.items():
            active = latents[name]
            count = float((active > 0).sum(1).double().mean())
            l0 = Reading.of(view.step, name, "sae_l0", count, "latents", layer)
            if _is_dense(count, active.shape[1]):
                l0 = replace(l0, detail=_dense_warning(count, active.shape[1]))
            loss = unexplained_variance(own, self._decode(active).to(own), centre)
            readings += [l0, Reading.of(view.step, name, "sae_loss", loss, "share", layer)]
            then = self.start_active.get(name)
            if then is not None and then.shape == active.shape:
                overlap = jaccard(active, then)
                readings.append(Reading.of(view.step, name, "sae_jaccard", overlap, "share", layer))
        return readings

    def _run_readings(self, view: ProbeView, latents: Mapping[str, Tensor]) -> list[Reading]:
        layer, used = view.layer or "", torch.cat(list(latents.values())) > 0
        dead = 1 - float(used.any(0).double().mean())
        readings = [Reading.of(view.step, RUN, "sae_dead", dead, "share", layer)]
        if isinstance(self.current_sae, TopKSAE) and self.start_alive is not None and self.start_alive.any():
            turned = cosine_similarity(self.current_sae.W_dec, self.start_sae.W_dec, dim=1)
            mean = float(turned[self.start_alive].double().mean())
            readings.append(Reading.of(view.step, RUN, "sae_decoder_cosine", mean, "cosine", layer))
        return readings

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return self.current_sae.decode(latents).detach()


def _activations_by_behavior(view: ProbeView) -> dict[str, Tensor]:
    """Activations at the layer of each behaviour that has some, shape (rows, d)."""
    if view.layer is None:
        return {}
    found = {b.name: view.results[b.name].activations.get(view.layer) for b in view.behaviors}
    return {name: rows for name, rows in found.items() if rows is not None}


def _encode(sae: Any, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return sae.encode(rows.to(sae.W_dec)).detach()


def _is_dense(active: float, latents: int) -> bool:
    return active > DENSE * latents


def _dense_warning(active: float, latents: int) -> str:
    return f"the SAE is dense: a row uses {active:.0f} of {latents} latents, more than a quarter"
