"""SAE features: the latents of a sparse autoencoder that a behavior uses, and their change."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from riprap._extras import require
from riprap._warnings import warn
from riprap.errors import ConfigError
from riprap.record import check_fields
from riprap.signals._base import NO_LAYER, ProbeView, Signal, no_rows_reason, not_run
from riprap.signals.features._dictionary import TopKSAE, jaccard, unexplained_variance
from riprap.types import RUN, Reading

MAX_LATENTS = 1024
STEPS, RATE = 300, 1e-2  # at the start
UPDATE_STEPS, UPDATE_RATE = 10, 3e-3  # at each probe evaluation
DENSE = 0.25  # share of active latents above which a dictionary is not sparse


class SAEFeatures(Signal):
    """Sparse autoencoder that is trained at θ₀ on the behaviors' activations, and then updated.

    At each probe evaluation a copy of the last dictionary is trained for a few more steps, as
    SAE-Track does from checkpoint to checkpoint (2412.17626). The dictionary is TopK (2406.04093),
    small, and without the auxiliary loss that revives dead latents: a variant. A dictionary from a
    few probes is weak: it describes these rows, not the layer. For a better one give `activations`,
    or a trained `sae`.

    Readings per behavior: `sae_l0`, active latents per row; `sae_loss`, share of the variance not
    explained; `sae_jaccard`, overlap of a row's active sets now and at θ₀. For the run: `sae_dead`,
    share of latents that no row activates; `sae_decoder_cosine`, mean cosine between the current
    directions and those of θ₀, over latents that were active at θ₀.

    Costs about 300 passes of the autoencoder at the start and 10 per evaluation, over all rows.

    Args:
        latents: size of the dictionary; None: four times the width of the layer, at most 1024.
        k: maximal number of active latents per row; None: 1/32 of the latents.
        activations: more rows of the same layer at θ₀, shape (n, d), to train on at the start.
        sae: a trained autoencoder with `encode`, `decode` and `W_dec`. A `TopKSAE` is updated; any
            other stays fixed, and has no `sae_decoder_cosine`.

    Raises (at the start):
        ConfigError: `activations` or `sae` have another width than the layer.
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
        """Create the signal with a pretrained dictionary of the optional package sae-lens.

        Args:
            release, sae_id, options: as `sae_lens.SAE.from_pretrained` takes them.

        Raises:
            MissingExtraError: sae-lens is not installed.
        """
        require("sae", "sae_lens")
        package = importlib.import_module("sae_lens")
        loaded = package.SAE.from_pretrained(release=release, sae_id=sae_id, **options)
        # Versions before 6 return (sae, configuration, sparsity).
        return cls(sae=loaded[0] if isinstance(loaded, tuple) else loaded)

    def start(self, view: ProbeView) -> None:
        """Train the dictionary, or use the given one, and store the active sets of θ₀."""
        rows = _activations_by_behavior(view)
        if not rows:
            return
        pooled = torch.cat(list(rows.values()))
        self.start_sae = self.pretrained if self.pretrained is not None else self._train_sae(pooled)
        width = self.start_sae.W_dec.shape[1]
        if width != pooled.shape[1]:
            raise ConfigError(
                f"the SAE takes rows of width {width}, but layer {view.layer} returns "
                f"{pooled.shape[1]}: name the SAE's layer, Monitor(..., feature_layer=...)"
            )
        self.current_sae, self.last_rows = self.start_sae, pooled
        self.start_active = {name: _encode(self.start_sae, own) > 0 for name, own in rows.items()}
        used = torch.cat(list(self.start_active.values()))
        self.start_alive = used.any(0)
        if _is_dense(active := float(used.sum(1).double().mean()), used.shape[1]):
            warn(_dense_warning(active, used.shape[1]))

    def state_dict(self) -> dict[str, Any]:
        """Return the dictionaries trained here, and the active sets of θ₀."""
        trained = isinstance(self.start_sae, TopKSAE)
        return {
            "start_sae": asdict(self.start_sae) if trained else None,
            "current_sae": asdict(self.current_sae) if trained else None,
            "start_active": dict(self.start_active),
            "start_alive": self.start_alive,
            "last_rows": self.last_rows,
        }

    def load_state_dict(self, state: dict[str, Any], parameters: list[Tensor]) -> None:
        """Restore what `state_dict` returned; a given `sae` must be given again."""
        check_fields(
            state,
            start_sae=dict | None,
            current_sae=dict | None,
            start_active=dict,
            start_alive=Tensor | None,
            last_rows=Tensor | None,
        )
        trained = state["start_sae"] is not None
        self.start_sae = TopKSAE(**state["start_sae"]) if trained else self.pretrained
        self.current_sae = TopKSAE(**state["current_sae"]) if trained else self.pretrained
        self.start_active, self.start_alive = state["start_active"], state["start_alive"]
        self.last_rows = state["last_rows"]

    def on_probe_evaluation(self, view: ProbeView) -> list[Reading]:
        """Update the dictionary, and read it."""
        rows = _activations_by_behavior(view)
        reason = NO_LAYER if view.layer is None else no_rows_reason(view.layer)
        names = [b.name for b in view.behaviors if b.name not in rows and view.step == 0]
        missing = [not_run(0, name, self.name, reason) for name in names]
        if self.start_sae is None or not rows:
            return missing
        self._update_sae(torch.cat(list(rows.values())))
        latents = {name: _encode(self.current_sae, own) for name, own in rows.items()}
        readings = self._behavior_readings(view, rows, latents) + self._run_readings(view, latents)
        return missing + readings

    def _train_sae(self, pooled: Tensor) -> TopKSAE:
        rows = pooled
        if self.activations is not None:
            if self.activations.dim() != 2 or self.activations.shape[1] != pooled.shape[1]:
                raise ConfigError(
                    f"SAEFeatures(activations=...) of shape {tuple(self.activations.shape)}; "
                    f"the layer returns rows of width {pooled.shape[1]}"
                )
            rows = torch.cat([pooled, self.activations.to(pooled)])
        latents = self.latents or min(4 * pooled.shape[1], MAX_LATENTS)
        sae = TopKSAE.initialize(rows, latents, self.k or max(latents // 32, 1))
        sae.train(rows, STEPS, RATE)
        return sae

    def _update_sae(self, pooled: Tensor) -> None:
        """Train a copy on the current rows, if they have changed."""
        unchanged = self.last_rows is not None and torch.equal(self.last_rows, pooled)
        if not isinstance(self.current_sae, TopKSAE) or unchanged:
            return
        self.current_sae, self.last_rows = self.current_sae.copy(), pooled
        self.current_sae.train(pooled, UPDATE_STEPS, UPDATE_RATE)

    def _behavior_readings(
        self, view: ProbeView, rows: Mapping[str, Tensor], latents: Mapping[str, Tensor]
    ) -> list[Reading]:
        layer, readings = view.layer or "", []
        center = torch.cat(list(rows.values())).mean(0)
        for name, own in rows.items():
            active = latents[name]
            count = float((active > 0).sum(1).double().mean())
            l0 = Reading.of(view.step, name, "sae_l0", count, "latents", layer)
            if _is_dense(count, active.shape[1]):
                l0 = replace(l0, detail=_dense_warning(count, active.shape[1]))
            loss = unexplained_variance(own, self._decode(active).to(own), center)
            readings += [l0, Reading.of(view.step, name, "sae_loss", loss, "share", layer)]
            at_start = self.start_active.get(name)
            if at_start is not None and at_start.shape == active.shape:
                overlap = jaccard(active, at_start)
                readings.append(Reading.of(view.step, name, "sae_jaccard", overlap, "share", layer))
        return readings

    def _run_readings(self, view: ProbeView, latents: Mapping[str, Tensor]) -> list[Reading]:
        layer, used = view.layer or "", torch.cat(list(latents.values())) > 0
        dead = 1 - float(used.any(0).double().mean())
        readings = [Reading.of(view.step, RUN, "sae_dead", dead, "share", layer)]
        alive = self.start_alive
        if isinstance(self.current_sae, TopKSAE) and alive is not None and alive.any():
            cosines = cosine_similarity(self.current_sae.W_dec, self.start_sae.W_dec, dim=1)
            mean = float(cosines[alive].double().mean())
            readings.append(Reading.of(view.step, RUN, "sae_decoder_cosine", mean, "cosine", layer))
        return readings

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return self.current_sae.decode(latents).detach()


def _activations_by_behavior(view: ProbeView) -> dict[str, Tensor]:
    """Return the activations at the layer, shape (rows, d), of each behavior that has any."""
    if view.layer is None:
        return {}
    rows = {b.name: view.results[b.name].activations.get(view.layer) for b in view.behaviors}
    return {name: part for name, part in rows.items() if part is not None}


def _encode(sae: Any, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return sae.encode(rows.to(sae.W_dec)).detach()


def _is_dense(active: float, latents: int) -> bool:
    return active > DENSE * latents


def _dense_warning(active: float, latents: int) -> str:
    return f"the SAE is dense: a row uses {active:.0f} of {latents} latents, more than a quarter"
