"""Methods of the bench: a table of mixing and of every guard, each with its one main knob.

A new guard is one line. Its first knob value is its default, and the other two lie around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor, nn

from experiments.guards_bench.grounds import Ground, OldTask, loss
from experiments.guards_bench.osft import osft
from riprap import guards
from riprap.errors import ConfigError
from riprap.guards import Guard, SelfDistillationBuffer
from riprap.toy import Examples, batches


class CountedBatches(Sequence[Examples]):
    """Batches that count the rows read."""

    def __init__(self, stored: list[Examples]) -> None:
        self.stored, self.rows = stored, 0

    def __len__(self) -> int:
        return len(self.stored)

    @overload
    def __getitem__(self, at: int) -> Examples: ...
    @overload
    def __getitem__(self, at: slice) -> list[Examples]: ...
    def __getitem__(self, at: int | slice) -> Examples | list[Examples]:
        """Return a batch, and count its rows."""
        found = self.stored[at]
        self.rows += len(found) if isinstance(found, Examples) else sum(map(len, found))
        return found


@dataclass
class Memory:
    """The old rows that may be replayed in a stage, as guards take them.

    Attributes:
        size: old rows in a batch, and batches before they repeat.
        buffers: the buffers that were handed out.
    """

    old: Sequence[OldTask]
    seed: int
    layer: str | None = None
    causal: bool = True
    size: tuple[int, int] = Ground.replay
    buffers: list[SelfDistillationBuffer] = field(default_factory=list)

    @cached_property
    def batches(self) -> CountedBatches:
        """Old rows with their right answers, as many of each old task."""
        pools = [own.pool for own in self.old]
        rows, count = self.size
        sizes = [rows // len(pools) + (at < rows % len(pools)) for at in range(len(pools))]
        data = batches(pools, sizes, self.seed)
        return CountedBatches([next(data) for _ in range(count)])

    def buffer(self) -> SelfDistillationBuffer:
        """Return the old rows without labels."""
        pools = [own.buffered() for own in self.old]
        self.buffers.append(SelfDistillationBuffer(pools, self.size[0], self.seed))
        return self.buffers[-1]

    def responses(self) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Return old batches as model inputs and labels, one answer token as a response.

        Raises:
            ConfigError: the model is a classifier.
        """
        if not self.causal:
            raise ConfigError("it protects responses, and a classifier has none")
        pairs = []
        for batch in self.batches.stored:
            if batch.targets.ndim == 2:
                pairs.append(({"input_ids": batch.input_ids}, batch.targets))
                continue
            ids = torch.cat([batch.input_ids, batch.targets[:, None]], 1)
            labels = torch.full_like(ids, -100)
            labels[:, -1] = batch.targets
            pairs.append(({"input_ids": ids}, labels))
        return pairs

    def labeled(self) -> Sequence[tuple[Any, Tensor]]:
        """Return old batches as model inputs and labels."""
        if self.causal:
            return self.responses()
        return [(batch.input_ids, batch.targets) for batch in self.batches.stored]

    @property
    def replayed(self) -> int:
        """Number of old rows that were drawn."""
        drawn = sum(sum(buffer.drawn.values()) for buffer in self.buffers)
        return drawn + (self.batches.rows if "batches" in vars(self) else 0)


Make = Callable[[Memory, float], Guard]
Adapt = Callable[[nn.Module, float], nn.Module]


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        knob: the parameter that is searched.
        values: its values; the first is the default.
        make: makes the guard with its parameter at a value; None: no guard.
        mixes: the value is the share of each batch that is replaced by old rows.
        reads: old rows that it learns from: monitored `probes`, the `buffer`, or nothing.
        adapt: makes the model that is trained; its `merge_and_unload` gives the plain model back.
    """

    knob: str = ""
    values: tuple[float, ...] = (0.0,)
    make: Make | None = None
    mixes: bool = False
    reads: str = "nothing"
    adapt: Adapt | None = None


def _share(share: float) -> Method:
    return Method("share", (share,), mixes=True, reads="buffer")


def _probes(knob: str, values: tuple[float, ...], make: Make) -> Method:
    return Method(knob, values, make, reads="probes")


def _buffer(knob: str, values: tuple[float, ...], make: Make) -> Method:
    return Method(knob, values, make, reads="buffer")


def _lisa(memory: Memory, value: float) -> Guard:
    return guards.Lisa(memory.batches, loss, task_steps=90, protected_steps=int(value))


def _auto(memory: Memory, value: float) -> Guard:
    return guards.AutoGuard(replay=memory.buffer(), keep=value)


NONE, AUTO = "none", "auto_guard"
MIXING = {f"mixing_{100 * share:.0f}": _share(share) for share in (0.05, 0.10, 0.25, 0.50)}
METHODS: dict[str, Method] = {
    NONE: Method(),
    **MIXING,
    AUTO: _buffer("keep", (0.95, 0.85, 1.0), _auto),
    "replay": _buffer(
        "fraction",
        (0.25, 0.1, 0.5),
        lambda m, v: guards.Replay(m.batches, loss=loss, fraction=v),
    ),
    "replay_of_outputs": _buffer(
        "fraction", (0.25, 0.1, 0.5), lambda m, v: guards.Replay(m.buffer(), fraction=v)
    ),
    "adaptive_replay": _buffer(
        "fraction", (0.5, 0.25, 0.75), lambda m, v: guards.AdaptiveReplay(m.buffer(), fraction=v)
    ),
    "lisa": _buffer("protected_steps", (10, 30, 90), _lisa),
    "constrained_tokens": _buffer(
        "strength",
        (1.0, 0.3, 3.0),
        lambda m, v: guards.ConstrainedTokens(m.responses(), strength=v),
    ),
    "kl": _probes("strength", (1.0, 0.3, 3.0), lambda m, v: guards.KL(strength=v)),
    "ewc": _probes("strength", (1.0, 1e3, 1e5), lambda m, v: guards.EWC(strength=v)),
    "ewc_of_margins": _probes(
        "strength", (1.0, 0.1, 10.0), lambda m, v: guards.EWC(strength=v, of="margin")
    ),
    "online_ewc": _probes(
        "strength", (1.0, 1e3, 1e5), lambda m, v: guards.OnlineEWC(strength=v, every=100)
    ),
    "si": _probes("strength", (1.0, 1e2, 1e4), lambda m, v: guards.SI(strength=v)),
    "mas": _probes("strength", (1.0, 0.1, 10.0), lambda m, v: guards.MAS(strength=v)),
    "margin_anchor": _probes(
        "strength", (20.0, 2.0, 200.0), lambda m, v: guards.MarginAnchor(strength=v)
    ),
    "der_pp": _buffer("alpha", (0.1, 0.5, 2.0), lambda m, v: guards.DERpp(m.labeled(), alpha=v)),
    "lwf": Method("temperature", (2.0, 1.0, 4.0), lambda m, v: guards.LwF(temperature=v)),
    "safe_anchor": _buffer(
        "energy",
        (0.9, 0.7, 0.99),
        lambda m, v: guards.SafeAnchor(replay=m.buffer(), energy=v),
    ),
    "l2_sp": Method("strength", (0.1, 0.01, 1.0), lambda m, v: guards.L2SP(strength=v)),
    "feature_anchor": _probes(
        "strength",
        (1.0, 0.1, 10.0),
        lambda m, v: guards.FeatureAnchor(strength=v, layer=m.layer),
    ),
    "agem": _probes("refresh", (20, 5, 1), lambda m, v: guards.AGEM(refresh=int(v))),
    "gem": _probes("strength", (0.0, 0.1, 0.5), lambda m, v: guards.GEM(strength=v)),
    "gem_of_losses": _probes(
        "strength",
        (0.0, 0.1, 0.5),
        lambda m, v: guards.GEM(strength=v, of="loss", normalize=False),
    ),
    "pcgrad": _probes("refresh", (20, 5, 1), lambda m, v: guards.PCGrad(refresh=int(v))),
    "upgrad": _probes("refresh", (20, 5, 1), lambda m, v: guards.UPGrad(refresh=int(v))),
    "update_projection": _probes(
        "refresh", (20, 5, 1), lambda m, v: guards.UpdateProjection(refresh=int(v))
    ),
    "safegrad": _probes("strength", (1.0, 0.3, 3.0), lambda m, v: guards.SafeGrad(strength=v)),
    "ogd": _probes("directions", (48, 12, 144), lambda m, v: guards.OGD(directions=int(v))),
    "gpm": _probes("energy", (0.97, 0.9, 0.99), lambda m, v: guards.GPM(energy=v)),
    "two_sided_gpm": _probes(
        "energy", (0.97, 0.9, 0.99), lambda m, v: guards.TwoSidedGPM(energy=v)
    ),
    "rollback": _probes("lr_factor", (0.5, 0.25, 0.8), lambda m, v: guards.Rollback(lr_factor=v)),
    "osft": Method("preserved", (0.5, 0.25, 0.75), adapt=osft),
    "ema": Method("decay", (0.9, 0.8, 0.95), lambda m, v: guards.EMA(decay=v)),
    "clip": Method("outlier", (2.0, 1.0, 5.0), lambda m, v: guards.Clip(outlier=v)),
}
