"""Guards that are compared, each with its one main parameter and three values of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.worlds import FactsWorld
from riprap import guards
from riprap.guards import Guard
from riprap.toy import Examples

Make = Callable[[float, FactsWorld], Guard]


@dataclass(frozen=True)
class GuardEntry:
    """A guard that is compared, with the parameter that is searched.

    Attributes:
        knob: parameter that is searched; `values`: the three values that are tried.
        make: makes the guard with its parameter at a value.
    """

    knob: str
    values: tuple[float, float, float]
    make: Make


def old_batches(world: FactsWorld, rows: int = 32, count: int = 64) -> list[Examples]:
    """Return batches of old inputs, without probes, with their right answers.

    The inputs are those of `world.pools()`, in the proportions in which they were learned.
    """
    generator = torch.Generator().manual_seed(0)
    pools = {pool.name: pool for pool in world.pools()}
    sizes = world.mix(rows)
    collected = []
    for _ in range(count):
        parts = []
        for name, size in zip(world.old, sizes, strict=True):
            pool = pools[name]
            chosen = torch.randint(len(pool.probes), (size,), generator=generator)
            targets = pool.margins.targets
            assert targets is not None
            parts.append(Examples(pool.probes.input_ids[chosen], targets[chosen]))
        collected.append(Examples.join(parts))
    return collected


def responses(world: FactsWorld) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Return old batches as model inputs and labels, with the answer as a one-token response."""
    pairs = []
    for batch in old_batches(world):
        ids = torch.cat([batch.input_ids, batch.targets[:, None]], 1)
        labels = torch.full_like(ids, -100)
        labels[:, -1] = batch.targets
        pairs.append(({"input_ids": ids}, labels))
    return pairs


def frozen(value: float, world: FactsWorld) -> Guard:
    """Freeze the embeddings (0), the lowest layer (1) or both (2)."""
    return guards.Freeze(embeddings=value in (0, 2), layers=int(value > 0))


def lisa(value: float, world: FactsWorld) -> Guard:
    """Take `value` protected steps in every ten."""
    old, own = old_batches(world), int(value)
    return guards.Lisa(old, world.loss, task_steps=10 - own, protected_steps=own, max_pull=None)


GUARDS: dict[str, GuardEntry] = {
    "agem": GuardEntry("refresh", (5, 10, 20), lambda v, w: guards.AGEM(refresh=int(v))),
    "gem": GuardEntry("strength", (0.0, 0.1, 0.5), lambda v, w: guards.GEM(strength=v)),
    "pcgrad": GuardEntry("refresh", (5, 10, 20), lambda v, w: guards.PCGrad(refresh=int(v))),
    "upgrad": GuardEntry("refresh", (5, 10, 20), lambda v, w: guards.UPGrad(refresh=int(v))),
    "ogd": GuardEntry("directions", (12, 48, 144), lambda v, w: guards.OGD(directions=int(v))),
    "gpm": GuardEntry("energy", (0.9, 0.97, 0.99), lambda v, w: guards.GPM(energy=v, free=0.0)),
    "two_sided_gpm": GuardEntry(
        "energy", (0.9, 0.97, 0.99), lambda v, w: guards.TwoSidedGPM(energy=v, free=0.0)
    ),
    "safegrad": GuardEntry(
        "strength", (0.3, 1.0, 3.0), lambda v, w: guards.SafeGrad(strength=v, refresh=20)
    ),
    "update_projection": GuardEntry(
        "refresh", (5, 10, 20), lambda v, w: guards.UpdateProjection(refresh=int(v))
    ),
    "ewc": GuardEntry(
        "strength", (1e3, 1e5, 1e7), lambda v, w: guards.EWC(strength=v, max_pull=None)
    ),
    "ewc_of_margins": GuardEntry(
        "strength",
        (0.1, 1.0, 10.0),
        lambda v, w: guards.EWC(strength=v, of="margin", max_pull=None),
    ),
    "online_ewc": GuardEntry(
        "strength",
        (1e3, 1e5, 1e7),
        lambda v, w: guards.OnlineEWC(strength=v, every=100, max_pull=None),
    ),
    "si": GuardEntry(
        "strength", (1.0, 100.0, 1e4), lambda v, w: guards.SI(strength=v, max_pull=None)
    ),
    "mas": GuardEntry(
        "strength", (0.1, 1.0, 10.0), lambda v, w: guards.MAS(strength=v, max_pull=None)
    ),
    "l2_sp": GuardEntry(
        "strength", (0.1, 1.0, 10.0), lambda v, w: guards.L2SP(strength=v, max_pull=None)
    ),
    "kl": GuardEntry("strength", (0.3, 1.0, 3.0), lambda v, w: guards.KL(strength=v)),
    "replay": GuardEntry(
        "fraction",
        (0.25, 0.5, 0.75),
        lambda v, w: guards.Replay(old_batches(w), loss=w.loss, fraction=v, every=2),
    ),
    "replay_of_pools": GuardEntry(
        "fraction",
        (0.25, 0.5, 0.75),
        lambda v, w: guards.Replay(guards.SelfDistillationBuffer(w.pools()), fraction=v, every=2),
    ),
    "adaptive_replay": GuardEntry(
        "fraction",
        (0.25, 0.5, 0.75),
        lambda v, w: guards.AdaptiveReplay(guards.SelfDistillationBuffer(w.pools()), fraction=v),
    ),
    "constrained_tokens": GuardEntry(
        "strength", (0.3, 1.0, 3.0), lambda v, w: guards.ConstrainedTokens(responses(w), strength=v)
    ),
    "lisa": GuardEntry("protected steps in ten", (1, 2, 5), lisa),
    "freeze": GuardEntry("parts", (0, 1, 2), frozen),
    "feature_anchor": GuardEntry(
        "strength", (0.1, 1.0, 10.0), lambda v, w: guards.FeatureAnchor(strength=v)
    ),
    "rollback": GuardEntry(
        "cut",
        (0.25, 0.5, 0.8),
        lambda v, w: guards.Rollback(lr_factor=v, every=20, max_rollbacks=5, keep_learning=False),
    ),
    "keeper": GuardEntry(
        "fraction",
        (0.25, 0.5, 0.75),
        lambda v, w: guards.AutoGuard(
            replay=guards.AdaptiveReplay(guards.SelfDistillationBuffer(w.pools()), fraction=v),
            rollback=guards.Rollback(every=100, keep_learning=False),
        ),
    ),
    "clip": GuardEntry("most", (0.1, 0.3, 1.0), lambda v, w: guards.Clip(max_norm=v)),
    "ema": GuardEntry("decay", (0.5, 0.8, 0.95), lambda v, w: guards.EMA(decay=v, every=10)),
}
