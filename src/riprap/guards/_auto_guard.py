"""AutoGuard: idle while margins are stable; then replays old examples, and projects steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from riprap._distributed import warn_once
from riprap._text import first_line
from riprap._warnings import warn
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView
from riprap.guards._composition import CompositeGuard, has_recovered
from riprap.guards.projection import GEM
from riprap.guards.replay import AdaptiveReplay, Replay, SelfDistillationBuffer
from riprap.guards.weights import Rollback
from riprap.types import Alert, Level

CRITICAL_PATIENCE = 100  # steps of replay under a critical alert before a rollback


class AutoGuard(CompositeGuard):
    """The default guard, controlled by the monitor.

    - While margins are stable it is idle, and training is bit-identical to training without it.
    - When margins are lost, or a break is forecast, `AdaptiveReplay` replays as many old examples
      as needed, at every second step or, where a score is no longer kept, at each.
    - If a score stays under the one to keep for 50 steps of replay, and does not rise, replay alone
      fails: from then on, while it replays, `GEM` removes from each step what goes against the
      margins of the monitored probes.
    - Where all this cannot hold a score, training goes on, and a warning and an action say so.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones. One that
            starts under its floor is protected too: at the score that it has.
        replay: required: source of old examples: a `SelfDistillationBuffer`, or a `Replay` of old
            batches, whose fraction is then the maximum share. An `AdaptiveReplay` is used
            unchanged.
        keep: how much of the old must stay: share of each behavior's score before training.
        projection: whether to project steps where replay alone fails. That reads the gradients of
            the monitored probes, so their scores are then a few points better than those of other
            inputs; False keeps the probes a measurement.
        rollback: True, or a `Rollback`: restore the last healthy state if a behavior is still
            critical after 100 steps of replay, with a lower learning rate. It needs the memory of
            two checkpoints, each three times the trained weights under Adam. It never restores the
            state before the first step, nor the same state twice;
            `Rollback(keep_learning=False)` protects the behaviors at any price: it may undo all
            that was learned.

    Raises:
        ConfigError: `replay` is missing or of another type, `keep` is not in (0, 1], or
            `behaviors` or `keep` is given together with an `AdaptiveReplay`, which has its own.
    """

    name: ClassVar[str] = "auto_guard"
    state_attrs: ClassVar[tuple[str, ...]] = ("critical_since", "projecting")

    def __init__(
        self,
        behaviors: Sequence[Behavior | str] | None = None,
        *,
        replay: SelfDistillationBuffer | Replay | None = None,
        keep: float | None = None,
        projection: bool = True,
        rollback: Rollback | bool = False,
        shadow: bool = False,
    ) -> None:
        if not isinstance(replay, SelfDistillationBuffer | Replay):
            raise ConfigError(
                f"AutoGuard(replay={type(replay).__name__}): it needs old examples to replay; give "
                "replay=SelfDistillationBuffer([behavior]) with other probes than the monitored "
                "ones (Behavior.split), or replay=Replay(batches)"
            )
        options: dict[str, Any] = {"behaviors": behaviors}
        options |= {} if keep is None else {"keep": keep}
        if isinstance(replay, AdaptiveReplay):
            if behaviors is not None or keep is not None:
                raise ConfigError(
                    "AutoGuard(replay=AdaptiveReplay(...)): give `behaviors` and `keep` to the "
                    "AdaptiveReplay, which uses them"
                )
            self.replay = replay
        elif isinstance(replay, Replay):
            settings = (replay.batches, replay.loss, replay.fraction, replay.every)
            self.replay = AdaptiveReplay(*settings, shadow=replay.shadow, **options)
        else:
            self.replay = AdaptiveReplay(replay, **options)
        self.projection = GEM(self.replay.behaviors) if projection else None
        if rollback is True:
            rollback = Rollback(self.replay.behaviors, every=CRITICAL_PATIENCE)
        self.rollback = rollback or None
        parts = (self.replay, self.projection, self.rollback)
        self._set_parts(*filter(None, parts), shadow=shadow)
        self.critical_since: dict[str, int] = {}  # first critical alert of each behavior
        self.projecting = False  # replay alone has failed
        self.can_project = projection

    def start(self, view: GuardView) -> None:
        """Forget the alerts of an earlier watch, and start the parts."""
        self.critical_since, self.projecting = {}, False
        for part in self.parts:
            part.part_of = self.name
            if part is not self.projection:
                part.start(view)
        if self.projection is not None:
            try:
                self.projection.start(view)
                self.can_project = True
            except ConfigError as error:
                self.can_project = False
                why = first_line(error, "no margin can be read")
                warn(f"{why}; training goes on with replay alone")

    def on_alert(self, alert: Alert) -> None:
        """Store the step of a critical alert; the rollback gets it only if replay does not help."""
        if alert.level is Level.CRITICAL:
            self.critical_since.setdefault(alert.behavior, alert.step)

    def active_guards(self, view: GuardView) -> Iterator[Guard]:
        """Yield the parts that act, after passing unresolved critical alerts to the rollback."""
        for name, since in list(self.critical_since.items()):
            if has_recovered(view, name):
                del self.critical_since[name]
            elif self.rollback is not None and view.step - since >= CRITICAL_PATIENCE:
                text = f"{name!r} has been critical for {view.step - since} steps"
                self.rollback.on_alert(Alert(view.step, name, Level.CRITICAL, self.name, text))
                del self.critical_since[name]
        yield self.replay
        if self.projection is not None and self.can_project:
            if not self.projecting and self.replay.is_failing(view):
                self.projecting = True
                failing = [name for name in self.replay.under_floor_since if name in self.doubts]
                doubts = "".join(f"; {self.doubts[name]}" for name in failing)
                warn_once(
                    f"guard {self.name}: replay alone does not bring a score back; from step "
                    f"{view.step} on, steps are projected on the margins of the monitored probes "
                    f"while it replays, so that their scores no longer measure other inputs{doubts}"
                )
            if self.projecting and self.replay.awake:
                yield self.projection
        if self.rollback is not None:
            yield self.rollback
