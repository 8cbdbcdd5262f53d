"""Adaptive replay: old examples come back as far as a behaviour's margin is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from riprap.behaviors import Behavior
from riprap.detectors import Track, low_margin
from riprap.errors import ConfigError
from riprap.guards._base import GuardView, Proposal, names_of
from riprap.guards.replay._self_distillation_buffer import Pools
from riprap.guards.replay._replay import Replay

# It wakes when so much of the deciding margin is spent, or when EARLY is spent and the rest is
# expected to last SOON steps at most: margins also fall to a new level and stay there, harmlessly.
AWAKE, EARLY, SOON = 0.75, 0.25, 12
# It rests when so much is spent at most; half as much each time that this was too early, to LEAST.
REST, LEAST = 0.50, 0.10


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
    keep: float = field(default=0.0, kw_only=True)
    names: list[str] = field(default_factory=list, init=False, repr=False)
    awake: list[str] = field(default_factory=list, init=False, repr=False)
    woken: dict[str, int] = field(default_factory=dict, init=False, repr=False)  # how often

    name: ClassVar[str] = "adaptive_replay"
    origin: ClassVar[str] = "ours"
    verdict: ClassVar[str] = "variant"
    projects: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("awake", "woken")

    def start(self, view: GuardView) -> None:
        """Find out whose need counts.

        Raises:
            ConfigError: a behaviour is not watched, or is to be kept and has no pool.
        """
        super().start(view)
        self.names = names_of(self.name, self.behaviors, view.behaviors)
        if isinstance(self.examples, Pools):
            bare = [name for name in self.names if name not in self.examples.behaviors]
            if bare:
                raise ConfigError(
                    f"guard {self.name}: {bare[0]!r} is to be kept and has no pool to learn again "
                    "from: give it one, or name those to keep by behaviors=[...]"
                )

    def needs_of(self, view: GuardView) -> dict[str, float]:
        """How much each behaviour that is awake needs, in (0, 1]; wakes them and lets them rest."""
        found = {}
        for name in self.names:
            track = view.tracks[name]
            if not track.steps or not track.healthy_at_start:
                continue
            used, forecast = spent(track, self.keep), view.forecasts.get(name)
            foreseen = forecast is not None and forecast.predicts_break
            soon = forecast is not None and used >= EARLY and forecast.median <= SOON
            if name not in self.awake and (used >= AWAKE or foreseen or soon):
                self.awake.append(name)
                self.woken[name] = self.woken.get(name, 0) + 1
            elif name in self.awake and used <= self._rest(name) and not (foreseen or soon):
                self.awake.remove(name)
            if name in self.awake:
                found[name] = min(max(used, LEAST), 1.0)
        return found

    def _rest(self, name: str) -> float:
        """How much may be spent for it to rest."""
        return max(REST / 2.0 ** (self.woken[name] - 1), LEAST)

    def on_gradients(self, view: GuardView) -> Proposal | None:
        """Mix in what is needed."""
        needs = self.needs_of(view)
        if not needs or view.step % self.every:
            return None
        return self._mixed(view, self.fraction * max(needs.values()) ** 0.5, needs)


def spent(track: Track, keep: float = 0.0) -> float:
    """Share of the deciding margin at the start that is gone; may be negative, or above 1.

    Args:
        keep: the score to decide by, where it is above the floor.
    """
    floor = max(track.floor, keep)
    start, now = (low_margin(track.margins[i], floor) for i in (0, -1))
    if start <= 0:  # the start itself did not score as much as is to be kept
        return spent(track) if keep > track.floor else 0.0
    return 1 - (now + min(track.predicted_since_visit(), 0.0)) / start
