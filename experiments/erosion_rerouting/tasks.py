"""Where the study stands: the world's behaviours, its drifted model, and the guards compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.erosion_rerouting.plan import Plan
from experiments.worlds import ToyWorld
from riprap import guards
from riprap.behaviors import Behavior
from riprap.evaluation import capture_outputs, evaluate
from riprap.guards import FeatureAnchor, Guard
from riprap.guards.regularization import DirectionDictionary
from riprap.signals.features import TopKSAE, principal_directions
from riprap.toy import train_or_load

LAYERS = ("model.layers.0", "model.layers.1")
ONE = LAYERS[1]  # the middle block, as `find_layer` takes it
READOUT = ("model.norm", "lm_head")  # what turns the last layer's features into answers
OTHER_ORDER = 10_000  # the run that features are chosen from sees the task in another order
SAE = {"latents": 256, "k": 16}
SAE_STEPS, SAE_RATE = 300, 1e-2


@dataclass
class Ground:
    """A world's old behaviours, and the model that an unguarded run made of the start.

    Attributes:
        runs: folder in which drifted models are kept.
    """

    task: str
    seed: int
    plan: Plan
    runs: Path

    @cached_property
    def world(self) -> ToyWorld:
        """The toy world."""
        return ToyWorld()

    @cached_property
    def old(self) -> Behavior:
        """All behaviours as one: so a penalty costs one pass, and weighs each alike."""
        parts = self.world.behaviors()
        targets = [part.margins.targets for part in parts if part.margins.targets is not None]
        ids = torch.cat([part.probes.input_ids for part in parts])
        return Behavior.next_token("old", ids, torch.cat(targets))

    @cached_property
    def unseen(self) -> dict[str, Behavior]:
        """The behaviours on inputs that no guard reads."""
        truth = self.world.truth().items()
        return {name: Behavior.next_token(name, one.input_ids, one.targets) for name, one in truth}

    @cached_property
    def start(self) -> nn.Module:
        """θ₀."""
        return self.world.start(self.seed).eval()

    @cached_property
    def drifted(self) -> nn.Module:
        """The start after the window's steps of the new task, unguarded and in another order."""

        def train(model: nn.Module) -> None:
            optimizer = self.world.optimizer(model)
            batches = self.world.batches(self.task, seed=self.seed + OTHER_ORDER)
            for _ in range(self.plan.window):
                self.world.loss(model, next(batches)).backward()
                optimizer.step()
                optimizer.zero_grad()

        name = f"{self.world.fingerprint}-{self.task}"[-40:]
        folder = self.runs / "drifted" / f"{name}-{self.plan.window}"
        model = self.world.start(self.seed).train()
        return train_or_load(model, "drifted", self.seed, folder, train).eval()

    def movement(self, layer: str) -> Tensor:
        """How far the drifted model's features are from the start's, shape (probes, d)."""
        return (
            activations(self.drifted, [self.old])[layer]
            - activations(self.start, [self.old])[layer]
        )

    def directions(self, layer: str) -> Tensor:
        """The directions in which the drifted model moved most, shape (count, d), orthonormal."""
        return principal_directions(self.movement(layer), self.plan.count).T


def activations(model: nn.Module, behaviors: list[Behavior]) -> dict[str, Tensor]:
    """What each layer puts out at the last position of all probes, shape (rows, d)."""
    with capture_outputs(model, LAYERS) as (found, _):
        for behavior in behaviors:
            evaluate(behavior, model)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def held_directions(guard: Guard | None, ground: Ground) -> dict[str, Tensor]:
    """By layer an orthonormal basis, (k, d), of what a guard holds there.

    Of a layer at which nothing is held, the directions that a guard would hold.
    """
    found = {layer: ground.directions(layer) for layer in LAYERS}
    for leaf in [] if guard is None else guard.flatten():
        if isinstance(leaf, FeatureAnchor):
            directions = leaf.dictionary.W_dec[leaf.signs != 0]
            found[leaf.layer_name] = principal_directions(directions, len(directions)).T
    return found


Make = Callable[[float, Ground], Guard]


def _at(layer: str, strength: float, ground: Ground, reselect: int | None = None) -> Guard:
    return FeatureAnchor(
        strength=strength,
        layer=layer,
        n_features=ground.plan.count,
        drifted_model=ground.drifted,
        both_sides=True,
        reselect_every=reselect,
    )


def _everywhere(strength: float, ground: Ground, reselect: int | None = None) -> guards.Chain:
    return guards.Chain(*[_at(layer, strength, ground, reselect) for layer in LAYERS])


def _random(strength: float, ground: Ground) -> Guard:
    """As many directions, drawn at random, at every layer."""
    made, count = torch.Generator().manual_seed(ground.seed), ground.plan.count
    parts = []
    for layer in LAYERS:
        width = ground.directions(layer).shape[1]
        drawn = torch.linalg.qr(torch.randn(width, width, generator=made))[0]
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


def _latents(strength: float, ground: Ground) -> Guard:
    """Latents of a sparse dictionary at one layer, each held on its harmful side alone."""
    rows = torch.cat([activations(m, [ground.old])[ONE] for m in (ground.start, ground.drifted)])
    sae = TopKSAE.initialize(rows, **SAE)
    sae.train(rows, SAE_STEPS, SAE_RATE)
    return FeatureAnchor(
        strength=strength,
        layer=ONE,
        sae=sae,
        n_features=ground.plan.count,
        drifted_model=ground.drifted,
    )


PLAIN, ALL = "plain", "all"
RESELECT, CLOSED, RANDOM = "reselect", "closed", "random"
BENCH: dict[str, Make] = {
    "one": lambda s, ground: _at(ONE, s, ground),
    ALL: _everywhere,
    RANDOM: _random,
    RESELECT: lambda s, ground: _everywhere(s, ground, ground.plan.reselect),
    CLOSED: _everywhere,
    "latents": _latents,
    "l2_sp": lambda s, _: guards.L2SP(strength=s),
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


def guard_of(condition: str, ground: Ground) -> Guard | None:
    """The guard of a condition; None of the unguarded one."""
    if condition == PLAIN:
        return None
    plan = ground.plan
    made = BENCH[condition](plan.strengths[condition], ground)
    if condition == "l2_sp":  # it needs no pass: it may act at every step
        return made
    spaced: Guard = guards.Scheduled(made, every=plan.every)
    return guards.Chain(spaced, guards.Freeze(READOUT)) if condition == CLOSED else spaced
