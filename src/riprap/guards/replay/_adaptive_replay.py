"""Adaptive replay: old examples come back as far as a behaviour's margin is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from riprap.behaviors import Behavior
from riprap.detectors import BehaviorHistory, threshold_margin
from riprap.errors import ConfigError
from riprap.guards._base import GuardView, Proposal, behavior_names
from riprap.guards.replay._replay import Replay
from riprap.guards.replay._self_distillation_buffer import SelfDistillationBuffer

# It wakes when so much of the deciding margin is spent, or when EARLY is spent and the rest is
# expected to last SOON steps at most: margins also fall to a new level and stay there, harmlessly.
WAKE_AT, EARLY_WAKE_AT, EARLY_HORIZON = 0.75, 0.25, 12
# It rests when so much is spent at most; half as much each time that this was too early, to LEAST.
REST_AT, MIN_REST_AT = 0.50, 0.10


@dataclass
class AdaptiveReplay(Replay):
    """Replay whose share follows what is measured and forecast of the behaviours.

    Idle while all is calm. It wakes for a behaviour once three quarters of its deciding margin are
    spent, what interference predicts since the last visit included; earlier where a break is
    forecast, or a quarter is spent and the rest is expected to last 12 steps at most. It rests when
    half is spent at most; each time it has to wake again, half as much.

    The share of the step is `fraction` times the root of what is spent of the neediest; `Pools`
    give each behaviour examples in proportion to its need. What of the mixed step still goes
    against the old examples is projected away, as A-GEM does with its memory.

    Args:
        behaviors: whose need counts; None: all that are watched. With `Pools` each needs a pool.
        keep: the score that is to stay, where it is above a behaviour's floor.
        fraction: the largest share of a step, where all of a deciding margin is spent.
    """

    fraction: float = 0.5
    every: int = 2
    behaviors: Sequence[Behavior | str] | None = field(default=None, kw_only=True)
    min_score: float = field(default=0.0, kw_only=True)
    names: list[str] = field(default_factory=list, init=False, repr=False)
    awake: list[str] = field(default_factory=list, init=False, repr=False)
    wake_count: dict[str, int] = field(default_factory=dict, init=False, repr=False)  # how often

    name: ClassVar[str] = "adaptive_replay"
    field_of_origin: ClassVar[str] = "ours"
    fidelity: ClassVar[str] = "variant"
    projects: ClassVar[bool] = True
    state_attrs: ClassVar[tuple[str, ...]] = ("awake", "wake_count")

    def start(self, view: GuardView) -> None:
        """Find out whose need counts.

        Raises:
            ConfigError: a behaviour is not watched, or is to be kept and has no pool.
        """
        super().start(view)
        self.names = behavior_names(self.name, self.behaviors, view.behaviors)
        if isinstance(self.examples, SelfDistillationBuffer):
            bare = [name for name in self.names if name not in self.examples.behaviors]
            if bare:
                raise ConfigError(
                    f"guard {self.name}: {bare[0]!r} is to be kept and has no pool to learn again "
                    "from: give it one, or name those to keep by behaviors=[...]"
                )

    def replay_needs(self, view: GuardView) -> dict[str, float]:
        """How much each behaviour that is awake needs, in (0, 1]; wakes them and lets them rest."""
        found = {}
        for name in self.names:
            track = view.histories[name]
            if not track.steps or not track.healthy_at_start:
                continue
            used, forecast = margin_spent(track, self.min_score), view.forecasts.get(name)
            foreseen = forecast is not None and forecast.predicts_break
            soon = forecast is not None and used >= EARLY_WAKE_AT and forecast.median <= EARLY_HORIZON
            if name not in self.awake and (used >= WAKE_AT or foreseen or soon):
                self.awake.append(name)
                self.wake_count[name] = self.wake_count.get(name, 0) + 1
            elif name in self.awake and used <= self._rest_at(name) and not (foreseen or soon):
                self.awake.remove(name)
            if name in self.awake:
                found[name] = min(max(used, MIN_REST_AT), 1.0)
        return found

    def _rest_at(self, name: str) -> float:
        """How much may be spent for it to rest."""
        return max(REST_AT / 2.0 ** (self.wake_count[name] - 1), MIN_REST_AT)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Mix in what is needed."""
        needs = self.replay_needs(view)
        if not needs or view.step % self.every:
            return None
        return self._mix(view, self.fraction * max(needs.values()) ** 0.5, needs)


def margin_spent(track: BehaviorHistory, min_score: float = 0.0) -> float:
    """Share of the deciding margin at the start that is gone; may be negative, or above 1.

    Args:
        keep: the score to decide by, where it is above the floor.
    """
    floor = max(track.floor, min_score)
    start, now = (threshold_margin(track.margins[i], floor) for i in (0, -1))
    if start <= 0:  # the start itself did not score as much as is to be kept
        return margin_spent(track) if min_score > track.floor else 0.0
    return 1 - (now + min(track.predicted_since_last_probe(), 0.0)) / start
