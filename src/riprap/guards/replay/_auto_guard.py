"""AutoGuard: idle while margins are stable, then replay as needed, and rollback at last."""

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

CRITICAL_PATIENCE = 100  # steps of replay under a critical alert before a rollback


class AutoGuard(CompositeGuard):
    """The default guard, controlled by the monitor.

    - While margins are stable it is idle, and training is bit-identical to training without it.
    - When margins are lost, or a break is forecast, `AdaptiveReplay` replays as many old examples
      as needed, and projects away what still conflicts with them.
    - If a behavior is still critical after 100 steps of replay, `Rollback` restores the last
      healthy state and reduces the learning rate. It never restores the state before the first
      step, nor the same state twice: where replay cannot hold a floor, training goes on, and a
      warning and an action say so.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones.
        replay: required: source of old examples: a `SelfDistillationBuffer`, or a `Replay` of old
            batches, whose fraction is then the maximum share. An `AdaptiveReplay` is used
            unchanged.
        min_score: the score that replay preserves; None: the behaviors' floors. Alerts and the
            rollback always use the floors.
        rollback: the last resort; False: none, which saves the memory of its two checkpoints (each
            three times the trained weights under Adam). A `Rollback` acts only on alerts that
            replay did not resolve, whatever its own level. `Rollback(keep_learning=False)` protects
            the behaviors at any price: it may undo all that was learned.

    Raises:
        ConfigError: `replay` is missing or of another type, `min_score` is not in (0, 1], or
            `behaviors` or `min_score` is given together with an `AdaptiveReplay`, which has its
            own.
    """

    name: ClassVar[str] = "keeper"
    state_attrs: ClassVar[tuple[str, ...]] = ("critical_since",)

    def __init__(
        self,
        behaviors: Sequence[Behavior | str] | None = None,
        *,
        replay: SelfDistillationBuffer | Replay | None = None,
        min_score: float | None = None,
        rollback: Rollback | bool = True,
        shadow: bool = False,
    ) -> None:
        if not isinstance(replay, SelfDistillationBuffer | Replay):
            raise ConfigError(
                f"AutoGuard(replay={type(replay).__name__}): it needs old examples to replay; give "
                "replay=SelfDistillationBuffer([behavior]) with other probes than the monitored "
                "ones (Behavior.split), or replay=Replay(batches)"
            )
        if min_score is not None and not 0 < min_score <= 1:
            raise ConfigError(f"AutoGuard(min_score={min_score}): a score must lie in (0, 1]")
        options: dict[str, Any] = {"behaviors": behaviors, "min_score": min_score or 0.0}
        if isinstance(replay, AdaptiveReplay):
            if behaviors is not None or min_score is not None:
                raise ConfigError(
                    "AutoGuard(replay=AdaptiveReplay(...)): give `behaviors` and `min_score` to "
                    "the AdaptiveReplay, which uses them"
                )
            self.replay = replay
        elif isinstance(replay, Replay):
            settings = (replay.batches, replay.loss, replay.fraction, replay.every)
            self.replay = AdaptiveReplay(*settings, shadow=replay.shadow, **options)
        else:
            self.replay = AdaptiveReplay(replay, **options)
        if rollback is True:
            rollback = Rollback(behaviors, every=CRITICAL_PATIENCE)
        self.rollback = rollback or None
        if self.rollback is not None and self.rollback.keep_learning is None:
            self.rollback.keep_learning = True
        self._set_parts(self.replay, *filter(None, [self.rollback]), shadow=shadow)
        self.critical_since: dict[str, int] = {}  # first critical alert of each behavior

    def on_alert(self, alert: Alert) -> None:
        """Store the step of a critical alert; the rollback gets it only if replay does not help."""
        if alert.level is Level.CRITICAL:
            self.critical_since.setdefault(alert.behavior, alert.step)

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """Yield replay and rollback, after passing unresolved critical alerts to the rollback."""
        for name, since in list(self.critical_since.items()):
            if has_recovered(view, name):
                del self.critical_since[name]
            elif self.rollback is not None and view.step - since >= CRITICAL_PATIENCE:
                text = f"{name!r} has been critical for {view.step - since} steps"
                self.rollback.on_alert(Alert(view.step, name, Level.CRITICAL, self.name, text))
                del self.critical_since[name]
        yield from self.parts
