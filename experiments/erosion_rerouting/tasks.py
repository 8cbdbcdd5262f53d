"""Behaviors, drifted model and guards of the experiment on rerouted erosion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from experiments.erosion_rerouting.plan import Plan
from experiments.harness.cache import RUNS
from experiments.worlds import ToyWorld
from experiments.worlds.training import train
from riprap import guards
from riprap.behaviors import Behavior
from riprap.evaluation import capture_outputs, evaluate
from riprap.guards import FeatureAnchor, Guard
from riprap.guards.regularization import DirectionDictionary
from riprap.signals.features import TopKSAE, principal_directions
from riprap.toy import train_or_load

LAYERS = ("model.layers.0", "model.layers.1")
ONE = LAYERS[1]  # the middle block, as `find_layer` takes it
READOUT = ("model.norm", "lm_head")  # maps the last layer's features to answers
OTHER_ORDER = 10_000  # added to the seed of the run from which features are chosen
SAE = {"latents": 256, "k": 16}
SAE_STEPS, SAE_RATE = 300, 1e-2


@dataclass
class Setting:
    """Old behaviors of a world, and the model to which an unguarded run drifts."""

    task: str
    seed: int
    plan: Plan

    @cached_property
    def world(self) -> ToyWorld:
        """Return the toy world."""
        return ToyWorld()

    @cached_property
    def old(self) -> Behavior:
        """Return all behaviors as one: a penalty costs one pass and weights them equally."""
        parts = self.world.behaviors()
        targets = [part.margins.targets for part in parts if part.margins.targets is not None]
        ids = torch.cat([part.probes.input_ids for part in parts])
        return Behavior.next_token("old", ids, torch.cat(targets))

    @cached_property
    def unseen(self) -> dict[str, Behavior]:
        """Return the behaviors on inputs that no guard reads."""
        truth = self.world.truth().items()
        return {name: Behavior.next_token(name, one.input_ids, one.targets) for name, one in truth}

    @cached_property
    def start(self) -> nn.Module:
        """Return the model at θ₀."""
        return self.world.start(self.seed).eval()

    @cached_property
    def drifted(self) -> nn.Module:
        """Return the start after the window's steps of the new task, unguarded, in other order."""

        def drift(model: nn.Module) -> None:
            batches = self.world.batches(self.task, seed=self.seed + OTHER_ORDER)
            train(self.world, model, batches, self.plan.window)

        name = f"{self.world.fingerprint}-{self.task}"[-40:]
        folder = RUNS / "erosion_rerouting/drifted" / f"{name}-{self.plan.window}"
        model = self.world.start(self.seed).train()
        return train_or_load(model, "drifted", self.seed, folder, drift).eval()

    def movement(self, layer: str) -> Tensor:
        """Return the difference of the drifted model's features and the start's, (probes, d)."""
        return (
            activations(self.drifted, [self.old])[layer]
            - activations(self.start, [self.old])[layer]
        )

    def directions(self, layer: str) -> Tensor:
        """Return the directions of the largest movement, shape (count, d), orthonormal."""
        return principal_directions(self.movement(layer), self.plan.count).T


def activations(model: nn.Module, behaviors: list[Behavior]) -> dict[str, Tensor]:
    """Return the output of each layer at the last position of all probes, shape (rows, d)."""
    with capture_outputs(model, LAYERS) as (found, _):
        for behavior in behaviors:
            evaluate(behavior, model)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def held_directions(guard: Guard | None, setting: Setting) -> dict[str, Tensor]:
    """Return by layer an orthonormal basis, (k, d), of the directions that a guard anchors.

    For a layer without an anchor, the directions that a guard would anchor.
    """
    found = {layer: setting.directions(layer) for layer in LAYERS}
    for leaf in [] if guard is None else guard.flatten():
        if isinstance(leaf, FeatureAnchor):
            directions = leaf.dictionary.W_dec[leaf.signs != 0]
            found[leaf.layer_name] = principal_directions(directions, len(directions)).T
    return found


Make = Callable[[float, Setting], Guard]


def _anchor(layer: str, strength: float, setting: Setting, reselect: int | None = None) -> Guard:
    return FeatureAnchor(
        strength=strength,
        layer=layer,
        n_features=setting.plan.count,
        drifted_model=setting.drifted,
        both_sides=True,
        reselect_every=reselect,
    )


def _everywhere(strength: float, setting: Setting, reselect: int | None = None) -> guards.Chain:
    return guards.Chain(*[_anchor(layer, strength, setting, reselect) for layer in LAYERS])


def _random(strength: float, setting: Setting) -> Guard:
    """Anchor as many random directions at every layer."""
    generator, count = torch.Generator().manual_seed(setting.seed), setting.plan.count
    parts = []
    for layer in LAYERS:
        width = setting.directions(layer).shape[1]
        drawn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        parts.append(
            FeatureAnchor(
                strength=strength,
                layer=layer,
                sae=DirectionDictionary(drawn[:count]),
                n_features=count,
                both_sides=True,
            )
        )
    return guards.Chain(*parts)


def _latents(strength: float, setting: Setting) -> Guard:
    """Anchor latents of a sparse dictionary at one layer, on their harmful side only."""
    rows = torch.cat([activations(m, [setting.old])[ONE] for m in (setting.start, setting.drifted)])
    sae = TopKSAE.initialize(rows, **SAE)
    sae.train(rows, SAE_STEPS, SAE_RATE)
    return FeatureAnchor(
        strength=strength,
        layer=ONE,
        sae=sae,
        n_features=setting.plan.count,
        drifted_model=setting.drifted,
    )


PLAIN, ALL = "plain", "all"
RESELECT, CLOSED, RANDOM = "reselect", "closed", "random"
GUARDS: dict[str, Make] = {
    "one": lambda s, setting: _anchor(ONE, s, setting),
    ALL: _everywhere,
    RANDOM: _random,
    RESELECT: lambda s, setting: _everywhere(s, setting, setting.plan.reselect),
    CLOSED: _everywhere,
    "latents": _latents,
    "l2_sp": lambda s, _: guards.L2SP(strength=s, max_pull=None),
    "kl": lambda s, _: guards.KL(strength=s),
}
ABOUT = {
    PLAIN: "no guard",
    "one": "directions that drifted most held, at the last layer",
    ALL: "the same at both layers",
    RANDOM: "as many random directions held, at both layers",
    RESELECT: "as `all`, and more join at each re-selection",
    CLOSED: "as `all`, and the readout frozen: final norm and output matrix",
    "latents": "latents of a sparse dictionary held on their harmful side, at the last layer",
    "l2_sp": "weights pulled to the start's",
    "kl": "answers on the probes pulled to the start's",
}


def guard_of(condition: str, setting: Setting) -> Guard | None:
    """Return the guard of a condition; None without a guard."""
    if condition == PLAIN:
        return None
    plan = setting.plan
    generator = GUARDS[condition](plan.strengths[condition], setting)
    if condition == "l2_sp":  # it needs no pass and may act at every step
        return generator
    spaced: Guard = guards.Scheduled(generator, every=plan.every)
    return guards.Chain(spaced, guards.Freeze(READOUT)) if condition == CLOSED else spaced
