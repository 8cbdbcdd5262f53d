"""The guards on the bench, each with its one main knob and the three values that are tried."""

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
class Entry:
    """One guard.

    Attributes:
        knob: what is searched; `values`: the three values that are tried.
        make: the guard with its knob at a value.
    """

    knob: str
    values: tuple[float, float, float]
    make: Make


def old_batches(world: FactsWorld, rows: int = 32, count: int = 64) -> list[Examples]:
    """Batches of old inputs, none of which is a probe, with their right answers.

    The same inputs as `world.pools()`, in the proportions in which they were learned.
    """
    generator = torch.Generator().manual_seed(0)
    pools = {pool.name: pool for pool in world.pools()}
    sizes = world.mix(rows)
    found = []
    for _ in range(count):
        parts = []
        for name, size in zip(world.old, sizes, strict=True):
            pool = pools[name]
            chosen = torch.randint(len(pool.probes), (size,), generator=generator)
            targets = pool.margins.targets
            assert targets is not None
            parts.append(Examples(pool.probes.input_ids[chosen], targets[chosen]))
        found.append(Examples.join(parts))
    return found


def responses(world: FactsWorld) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Old batches as model inputs and labels: the answer is the response, of one token."""
    found = []
    for batch in old_batches(world):
        ids = torch.cat([batch.input_ids, batch.targets[:, None]], 1)
        labels = torch.full_like(ids, -100)
        labels[:, -1] = batch.targets
        found.append(({"input_ids": ids}, labels))
    return found


def frozen(value: float, world: FactsWorld) -> Guard:
    """0: the embeddings; 1: the lowest layer; 2: both."""
    return guards.Freeze(embeddings=value in (0, 2), layers=int(value > 0))


def lisa(value: float, world: FactsWorld) -> Guard:
    """`value` protected steps in every ten."""
    protected = int(value)
    return guards.Lisa(
        old_batches(world), world.loss, task_steps=10 - protected, protected_steps=protected
    )


BENCH: dict[str, Entry] = {
    "agem": Entry("refresh", (5, 10, 20), lambda v, w: guards.AGEM(refresh=int(v))),
    "gem": Entry("strength", (0.0, 0.1, 0.5), lambda v, w: guards.GEM(strength=v)),
    "pcgrad": Entry("refresh", (5, 10, 20), lambda v, w: guards.PCGrad(refresh=int(v))),
    "upgrad": Entry("refresh", (5, 10, 20), lambda v, w: guards.UPGrad(refresh=int(v))),
    "ogd": Entry("directions", (12, 48, 144), lambda v, w: guards.OGD(directions=int(v))),
    "gpm": Entry("energy", (0.9, 0.97, 0.99), lambda v, w: guards.GPM(energy=v)),
    "two_sided_gpm": Entry("energy", (0.9, 0.97, 0.99), lambda v, w: guards.TwoSidedGPM(energy=v)),
    "safegrad": Entry("strength", (0.3, 1.0, 3.0), lambda v, w: guards.SafeGrad(strength=v)),
    "update_projection": Entry(
        "refresh", (5, 10, 20), lambda v, w: guards.UpdateProjection(refresh=int(v))
    ),
    "ewc": Entry("strength", (1e3, 1e5, 1e7), lambda v, w: guards.EWC(strength=v)),
    "ewc_of_margins": Entry(
        "strength", (0.1, 1.0, 10.0), lambda v, w: guards.EWC(strength=v, of="margin")
    ),
    "online_ewc": Entry(
        "strength", (1e3, 1e5, 1e7), lambda v, w: guards.OnlineEWC(strength=v, every=100)
    ),
    "si": Entry("strength", (1.0, 100.0, 1e4), lambda v, w: guards.SI(strength=v)),
    "mas": Entry("strength", (0.1, 1.0, 10.0), lambda v, w: guards.MAS(strength=v)),
    "l2_sp": Entry("strength", (0.1, 1.0, 10.0), lambda v, w: guards.L2SP(strength=v)),
    "kl": Entry("strength", (0.3, 1.0, 3.0), lambda v, w: guards.KL(strength=v)),
    "replay": Entry(
        "fraction",
        (0.25, 0.5, 0.75),
        lambda v, w: guards.Replay(old_batches(w), loss=w.loss, fraction=v, every=2),
    ),
    "replay_of_pools": Entry(
        "fraction",
        (0.25, 0.5, 0.75),
        lambda v, w: guards.Replay(guards.SelfDistillationBuffer(w.pools()), fraction=v, every=2),
    ),
    "adaptive_replay": Entry(
        "fraction",
        (0.25, 0.5, 0.75),
        lambda v, w: guards.AdaptiveReplay(guards.SelfDistillationBuffer(w.pools()), fraction=v),
    ),
    "constrained_tokens": Entry(
        "strength", (0.3, 1.0, 3.0), lambda v, w: guards.ConstrainedTokens(responses(w), strength=v)
    ),
    "lisa": Entry("protected steps in ten", (1, 2, 5), lisa),
    "freeze": Entry("parts", (0, 1, 2), frozen),
    "feature_anchor": Entry(
        "strength", (0.1, 1.0, 10.0), lambda v, w: guards.FeatureAnchor(strength=v)
    ),
    "rollback": Entry(
        "cut",
        (0.25, 0.5, 0.8),
        lambda v, w: guards.Rollback(lr_factor=v, every=20, max_rollbacks=5),
    ),
    "keeper": Entry(
        "fraction",
        (0.25, 0.5, 0.75),
        lambda v, w: guards.AutoGuard(
            replay=guards.AdaptiveReplay(guards.SelfDistillationBuffer(w.pools()), fraction=v)
        ),
    ),
    "clip": Entry("most", (0.1, 0.3, 1.0), lambda v, w: guards.Clip(max_norm=v)),
    "ema": Entry("decay", (0.5, 0.8, 0.95), lambda v, w: guards.EMA(decay=v)),
}
