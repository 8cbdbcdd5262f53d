"""The methods: one table; a method is one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from riprap import guards
from riprap.behaviors import Behavior
from riprap.guards import Guard, SelfDistillationBuffer
from riprap.selection import Scores, Strategy
from riprap.selection.strategies import Moderate, RandomByLength

BUFFER_ROWS = 8  # old examples in a draw
CHOSEN = "chosen"


@dataclass
class Memory:
    """State of a run that guards need: of its base and of earlier stages.

    Attributes:
        pools: the refusal behaviors on probes that may be replayed.
        earlier: the A matrices of each earlier adapter, by name.
        references: the base's log-probabilities on the monitored probes, for `KL`.
        targets: the base's answers to the replayed probes, for guards that replay.
    """

    pools: Sequence[Behavior]
    seed: int
    earlier: list[dict[str, Tensor]] = field(default_factory=list)
    references: list[Tensor] = field(default_factory=list)
    targets: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def buffer(self) -> SelfDistillationBuffer:
        """The probes to replay."""
        return SelfDistillationBuffer(self.pools, BUFFER_ROWS, self.seed)

    def keep_base(self, guard: Guard) -> None:
        """Let a guard that has started keep the base's answers, not those of its own start."""
        if isinstance(guard, guards.KL):
            self.references = self.references or guard.references
            guard.references = self.references
        if self.buffer.targets:
            self.targets = self.targets or dict(self.buffer.targets)
            self.buffer.targets = dict(self.targets)


Make = Callable[[Memory], Guard | None]


@dataclass(frozen=True)
class Method:
    """A way to train; everything not named is plain.

    Attributes:
        strategy: of the selection of rows.
        guard: makes the guard of a stage; None: it cannot act in it.
        informed: selection reads probes of the monitored behaviors.
        replays: old rows replace a share of each batch.
        filters: rows that preflight blames are left out before training.
        osft: singular directions of the weights are trained, and no adapter.
        pace: factor of the learning rate.
        ratio: share of a batch that selection learns from; None: the setting's.
        yoked: method whose run on the same base and data says which categories are learned.
    """

    strategy: str | Strategy | None = None
    guard: Make | None = None
    informed: bool = False
    replays: bool = False
    filters: bool = False
    osft: bool = False
    pace: float = 1.0
    ratio: float | None = None
    yoked: str | None = None


class GivenRows(Strategy):
    """Samples that were chosen before training: those of the category `CHOSEN`."""

    name = "given_rows"
    needs = frozenset({"category"})

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `Strategy.choose`."""
        return np.flatnonzero(scores.require("category") == CHOSEN)[:count]


class ModerateByLength(Moderate):
    """Moderate within lengths: samples whose norms lie nearest to the median of their stratum.

    Strata of length take turns, in random order, so that each has its share of the choice.
    """

    name = "moderate_by_length"

    def choose(self, scores: Scores, count: int, rng: np.random.Generator) -> np.ndarray:
        """See `Strategy.choose`."""
        candidates = self.candidates(scores)
        norms = scores.require("norm")
        strata = RandomByLength().strata(scores)[candidates]
        turns = np.empty(len(candidates), int)
        for stratum in np.unique(strata):
            own = np.flatnonzero(strata == stratum)
            values = norms[candidates[own]]
            turns[own[np.argsort(np.abs(values - np.median(values)), kind="stable")]] = range(
                len(own)
            )
        first = rng.permutation(strata.max() + 1)[strata]
        return candidates[np.lexsort((first, turns))[:count]]


def _o_lora(memory: Memory) -> Guard | None:
    return guards.OLoRA(earlier=list(memory.earlier)) if memory.earlier else None


SHARES = (0.1, 0.4, 0.6)  # of a batch, beside the setting's
SWEPT = {
    f"{name}_{share * 100:.0f}": Method(strategy=name, ratio=share)
    for share in SHARES
    for name in ("moderate", "random")
}
METHODS: dict[str, Method] = {
    "plain": Method(),
    "random": Method(strategy="random"),
    "moderate": Method(strategy="moderate"),
    "random_by_length": Method(strategy="random_by_length:moderate"),
    "random_by_category": Method(strategy="random_by_category:moderate"),
    "yoked_by_category": Method(strategy=GivenRows(), yoked="moderate"),
    "auto_guard": Method(guard=lambda memory: guards.AutoGuard(replay=memory.buffer)),
    "plain_half_rate": Method(pace=0.5),
    "high": Method(strategy="high"),
    "low": Method(strategy="low"),
    "moderate_by_length": Method(strategy=ModerateByLength()),
    "least_harm": Method(strategy="least_harm", informed=True),
    "replay_10": Method(replays=True),
    "kl": Method(guard=lambda _: guards.KL()),
    "o_lora": Method(guard=_o_lora),
    "ewc": Method(guard=lambda _: guards.EWC()),
    "clip": Method(guard=lambda _: guards.Clip(1.0)),
    "safe_anchor": Method(guard=lambda memory: guards.SafeAnchor(replay=memory.buffer)),
    "preflight_filtered": Method(filters=True),
    "osft": Method(osft=True),
    **SWEPT,
}
MAIN = (
    *("plain", "random", "moderate", "random_by_length", "random_by_category", "auto_guard"),
    "yoked_by_category",
)
FRONT = ("plain_half_rate",)  # with plain, attack success as a function of what was learned
