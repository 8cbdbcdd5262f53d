"""Adaptive replay: replay old examples in proportion to the margin that a behavior has lost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from riprap._distributed import warn_once
from riprap.behaviors import Behavior
from riprap.detectors import BehaviorHistory, score, threshold_margin
from riprap.guards._base import GuardView, Proposal, behavior_names
from riprap.guards.replay._replay import Replay
from riprap.guards.replay._self_distillation_buffer import SelfDistillationBuffer

# Replay of a behavior starts when the share WAKE_AT of its threshold margin is lost, or when
# EARLY_WAKE_AT is lost and the rest is expected to last at most EARLY_HORIZON steps: margins can
# also fall to a new level and stay there, harmlessly.
WAKE_AT, EARLY_WAKE_AT, EARLY_HORIZON = 0.75, 0.25, 12
# Replay stops when at most REST_AT is lost. The limit is halved each time replay has to start
# again, down to MIN_REST_AT.
REST_AT, MIN_REST_AT = 0.50, 0.10
# Steps of replay under the score to keep after which replay fails, if the score does not rise, and
# after which the old examples are said not to hold it.
FAIL_PATIENCE, HOLD_PATIENCE = 50, 100
# The mean cosine of the task's gradient with that on old examples, over about ten replays, from
# which on they are opposed: more than not. Asked after so many replays. New rows are said to
# contradict the old ones only where, beside that, a score is not held: classes that come one after
# the other have opposed gradients too, and all of them can be learned.
OPPOSED, COSINE_WEIGHT, MIN_REPLAYS = -0.5, 0.1, 20


@dataclass
class AdaptiveReplay(Replay):
    """Replay whose share follows the measured and predicted loss of margin.

    Replay of a behavior starts when three quarters of its threshold margin are lost, including the
    change that interference predicts since the last probe evaluation. It starts earlier if a
    quarter is lost, and a break is forecast or the rest is expected to last at most 12 steps. It
    stops when at most half is lost; this limit is halved each time replay has to start again.

    The old examples have the share `fraction` times the square root of the largest lost share, and
    are added to the task's gradient, which stays whole: g + f / (1 − f) g_r, with g_r no longer
    than g. A `SelfDistillationBuffer` draws examples of each behavior in proportion to its lost
    share. Where the whole margin of a behavior is lost, each step replays, whatever `every` is. If
    a score stays under the one to keep for 100 steps of replay, a warning and an action say so, and
    that the new rows contradict the old ones if their gradients are opposed then, or later.

    Args:
        behaviors: behaviors that trigger replay, as objects or names; None: all monitored ones. A
            `SelfDistillationBuffer` needs examples of each of them.
        keep: share of each behavior's score before training that must stay. The threshold margin
            is that of this score; never that of a score below the floor if the behavior starts
            above it.
        fraction: the maximum share of a step, used when the whole threshold margin is lost.
        every: interval of the steps with replay while some of the margin is left.

    Raises:
        ConfigError: in `start`, a behavior is not monitored, or the buffer has no examples of it.
    """

    fraction: float = 0.5
    every: int = 2
    behaviors: Sequence[Behavior | str] | None = field(default=None, kw_only=True)
    keep: float = field(default=0.95, kw_only=True)
    names: list[str] = field(default_factory=list, init=False, repr=False)
    awake: list[str] = field(default_factory=list, init=False, repr=False)
    wake_count: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    under_floor_since: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    not_held: list[str] = field(default_factory=list, init=False, repr=False)
    contradicts: bool = field(default=False, init=False, repr=False)
    replay_count: int = field(default=0, init=False, repr=False)
    replay_cosine: float = field(default=0.0, init=False, repr=False)

    name: ClassVar[str] = "adaptive_replay"
    field_of_origin: ClassVar[str] = "ours"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = (
        "awake",
        "wake_count",
        "under_floor_since",
        "not_held",
        "contradicts",
        "replay_count",
        "replay_cosine",
    )

    @property
    def reads_interference(self) -> bool:  # type: ignore[override]
        """True if a behavior is being replayed; the share follows the interference then."""
        return bool(self.awake)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            raise self._error(f"keep={self.keep!r}; a share of a score must lie in (0, 1]")
        self._known: dict[str, tuple[np.ndarray, np.ndarray, tuple[float, float] | None]] = {}

    def start(self, view: GuardView) -> None:
        """Start the replay source, and check that it covers the behaviors."""
        super().start(view)
        self.awake, self.wake_count, self.under_floor_since, self.not_held = [], {}, {}, []
        self.contradicts, self.replay_count, self.replay_cosine = False, 0, 0.0
        self.names = behavior_names(self.name, self.behaviors, view.behaviors)
        if isinstance(self.examples, SelfDistillationBuffer):
            missing = [name for name in self.names if name not in self.examples.behaviors]
            if missing:
                raise self._error(
                    f"the replay buffer has no examples of behavior {missing[0]!r}; add some, or "
                    "choose others by behaviors=[...]"
                )

    def replay_needs(self, view: GuardView) -> dict[str, float]:
        """Return the share of margin lost by each behavior with active replay, in (0, 1].

        Start and stop replay of behaviors as their margins require.
        """
        needs = {}
        for name in self.names:
            lost, forecast = self._margin_spent(view.histories[name]), view.forecasts.get(name)
            if lost is None:
                continue
            early = (
                forecast is not None
                and lost >= EARLY_WAKE_AT
                and (forecast.predicts_break or forecast.median <= EARLY_HORIZON)
            )
            if name not in self.awake and (lost >= WAKE_AT or early):
                self.awake.append(name)
                self.wake_count[name] = self.wake_count.get(name, 0) + 1
            elif name in self.awake and lost <= self._rest_at(name) and not early:
                self.awake.remove(name)
            if name in self.awake:
                needs[name] = min(max(lost, MIN_REST_AT), 1.0)
        return needs

    def _margin_spent(self, history: BehaviorHistory) -> float | None:
        """Return `margin_spent`; what it takes of the margins is computed once an evaluation."""
        if not history.steps:
            return None
        first, last = history.margins[0], history.margins[-1]
        known = self._known.get(history.behavior)
        if known is None or known[0] is not first or known[1] is not last:
            ends = initial_and_current(history, self.keep)
            known = self._known[history.behavior] = (first, last, ends)
        return None if known[2] is None else margin_spent(history, *known[2])

    def _rest_at(self, name: str) -> float:
        """Return the lost share of margin at which replay of a behavior stops."""
        return max(REST_AT / 2.0 ** (self.wake_count[name] - 1), MIN_REST_AT)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Mix in old examples if a behavior needs replay."""
        needs = self.replay_needs(view)
        if not needs:
            return None
        need = max(needs.values())
        if need < 1 and view.step % self.every:
            return None
        proposal = self._mix(view, self.fraction * need**0.5, needs, whole=True)
        self._note_cosine(proposal.before.get("cosine", math.nan))
        return proposal

    def _note_cosine(self, cosine: float) -> None:
        """Average the cosine over the last replays, if it is finite."""
        if math.isfinite(cosine):
            weight = max(1 / (self.replay_count + 1), COSINE_WEIGHT)
            self.replay_cosine += weight * (cosine - self.replay_cosine)
            self.replay_count += 1

    def is_failing(self, view: GuardView) -> bool:
        """Return whether a score stays under the one to keep in spite of replay, and does not rise.

        It has been under it for 50 steps of replay, and its last value is no higher than one that
        was measured at least 25 steps earlier, under replay too.
        """
        return not self.shadow and any(
            view.histories[name].step - since >= FAIL_PATIENCE
            and not _rises(view.histories[name], since)
            for name, since in self.under_floor_since.items()
        )

    def on_probe_evaluation(self, view: GuardView) -> Proposal | None:
        """Say so, once each, if a score is not held, and if the new rows contradict the old."""
        if self.shadow:  # nothing was replayed
            return None
        said = [*self._not_held(view), *self._contradiction()]
        for detail in said:
            warn_once(f"guard {self.label}: {detail}")
        return Proposal(detail="; ".join(said)) if said else None

    def _not_held(self, view: GuardView) -> Iterator[str]:
        """Yield a sentence on the scores that the old examples do not hold, each once."""
        said, doubts = [], []
        for name in self.names:
            history = view.histories[name]
            if not history.steps or history.step < view.step:
                continue
            now, target = score(history.margins[-1]), score_to_keep(history, self.keep)
            if name not in self.awake or now >= target:
                self.under_floor_since.pop(name, None)
                continue
            since = self.under_floor_since.setdefault(name, view.step)
            if view.step - since >= HOLD_PATIENCE and name not in self.not_held:
                self.not_held.append(name)
                kept = f"{now:.2f}, to keep {target:.2f}, for {view.step - since} steps"
                said.append(f"{name} ({kept}{self._coverage(name, len(history.margins[-1]))})")
                doubts += [self.doubts[name]] if name in self.doubts else []
        if len(doubts) < len(said):
            advice = "give more or other old examples, a larger fraction, or a lower learning rate"
            doubts.append(advice)
        if said:
            yield (
                f"the old examples do not hold the score of {', '.join(said)}; training goes on; "
                f"{'; '.join(doubts)}"
            )

    def _contradiction(self) -> Iterator[str]:
        """Yield a sentence, once, if the gradients are opposed where a score is not held."""
        opposed = self.replay_count >= MIN_REPLAYS and self.replay_cosine <= OPPOSED
        if opposed and self.not_held and not self.contradicts:
            self.contradicts = True
            yield (
                "the new rows contradict the old examples: their gradients are opposed (mean "
                f"cosine {self.replay_cosine:.2f}), so what is kept of the old is not learned of "
                "the new; a smaller `keep` or fraction lets more be learned"
            )

    def _coverage(self, name: str, n_probes: int) -> str:
        """Say how many examples of a behavior there are, if a buffer tells."""
        if not isinstance(self.examples, SelfDistillationBuffer):
            return ""
        n = len(self.examples.behaviors[name].probes)
        return f"; {n} example{'s' * (n > 1)} for {n_probes} monitored probes"


def _rises(history: BehaviorHistory, since: int) -> bool:
    """Return whether the last score is above those from `since` to half of the patience before."""
    until = history.step - FAIL_PATIENCE // 2
    rows = zip(history.steps, history.margins, strict=True)
    earlier = [score(margins) for at, margins in rows if since <= at <= until]
    return not earlier or score(history.margins[-1]) > max(earlier)


def score_to_keep(history: BehaviorHistory, keep: float) -> float:
    """Return the score to keep: a share of the first one, and the floor if it began above."""
    first = score(history.margins[0])
    target = keep * first
    return max(target, history.floor) if first >= history.floor else target


def initial_and_current(history: BehaviorHistory, keep: float) -> tuple[float, float] | None:
    """Return the first and the last threshold margin; None if the behavior has nothing to lose.

    Args:
        keep: share of the first score that defines the threshold margin.
    """
    target = score_to_keep(history, keep)
    if target <= 0:
        return None
    start, now = (threshold_margin(history.margins[i], target) for i in (0, -1))
    return start, now


def margin_spent(history: BehaviorHistory, start: float, now: float) -> float:
    """Return the share of the initial threshold margin that is lost; may be below 0 or above 1.

    Args:
        start, now: the first and the last threshold margin.
    """
    if start <= 0:
        return 0.0
    return 1 - (now + min(history.interference_since_last_probe(), 0.0)) / start
