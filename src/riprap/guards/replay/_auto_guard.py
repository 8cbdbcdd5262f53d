"""Keeper: the closed loop. Idle while all is calm, then replay as needed, at last a rollback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView
from riprap.guards._composition import CompositeGuard, has_recovered
from riprap.guards.replay._adaptive_replay import AdaptiveReplay
from riprap.guards.replay._replay import Replay
from riprap.guards.replay._self_distillation_buffer import SelfDistillationBuffer
from riprap.guards.weights import Rollback
from riprap.types import Alert, Level

CRITICAL_PATIENCE = 100  # steps under a critical alert, in spite of replay, before anything is rolled back


class AutoGuard(CompositeGuard):
    """The default guard, driven by the monitor.

    - Calm: idle, bit for bit.
    - Margins are being spent, or a break is forecast: `AdaptiveReplay`, by as much as is needed,
      to those that need it; what still conflicts with the old examples is projected away.
    - A critical alert still stands after 100 steps of that: `Rollback`, with a cut learning rate.

    Args:
        behaviors: what to keep; None: all that are watched.
        replay: where old examples come from: `Pools` of spare probes, or a `Replay` of old batches,
            whose fraction is then the largest share. An `AdaptiveReplay` is taken as it is.
        keep: how much of the old must stay, as a score, for replay to rest; None: the behaviours'
            floors, by which alerts and the rollback go in any case.
        rollback: the last resort; False: none, which saves the memory of its checkpoints (two, each
            three times the trained weights under Adam). It hears of what has been critical for long
            alone, whatever its own level.

    Raises:
        ConfigError: `keep` is no score, or the `AdaptiveReplay` says already what to keep.
    """

    name: ClassVar[str] = "keeper"
    state_attrs: ClassVar[tuple[str, ...]] = ("critical_since",)

    def __init__(
        self,
        behaviors: Sequence[Behavior | str] | None = None,
        *,
        replay: SelfDistillationBuffer | Replay,
        min_score: float | None = None,
        rollback: Rollback | bool = True,
        shadow: bool = False,
    ) -> None:
        if min_score is not None and not 0 < min_score <= 1:
            raise ConfigError(f"Keeper(keep={min_score}): how much must stay is a score in (0, 1]")
        own: dict[str, Any] = {"behaviors": behaviors, "min_score": min_score or 0.0}
        if isinstance(replay, AdaptiveReplay):
            if behaviors is not None or min_score is not None:
                raise ConfigError(
                    "Keeper(replay=AdaptiveReplay(...)): give behaviors and keep to the "
                    "AdaptiveReplay, which decides by them"
                )
            self.replay = replay
        elif isinstance(replay, Replay):
            given: dict[str, Any] = {"loss": replay.loss, "fraction": replay.fraction}
            given |= {"every": replay.every, "shadow": replay.shadow}
            self.replay = AdaptiveReplay(replay.batches, **given, **own)
        else:
            self.replay = AdaptiveReplay(replay, **own)
        given_back = Rollback(behaviors, every=CRITICAL_PATIENCE) if rollback is True else rollback
        self.rollback = given_back or None
        self._set_parts(self.replay, *filter(None, [self.rollback]), shadow=shadow)
        self.critical_since: dict[str, int] = {}  # since which step a critical alert stands

    def on_alert(self, alert: Alert) -> None:
        """Note since when it is critical; a rollback hears of it only when replay does not help."""
        if alert.level is Level.CRITICAL:
            self.critical_since.setdefault(alert.behavior, alert.step)

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """Replay, and the rollback, which is told of what replay could not mend."""
        for name, since in list(self.critical_since.items()):
            if has_recovered(view, name):
                del self.critical_since[name]
            elif self.rollback is not None and view.step - since >= CRITICAL_PATIENCE:
                text = f"{name!r} has been critical for {view.step - since} steps"
                alert = Alert(view.step, name, Level.CRITICAL, self.name, text)
                self.rollback.on_alert(alert)
                del self.critical_since[name]
        yield from self.parts
