"""AutoGuard: idle while margins are stable; then replays old examples and anchors weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.guards._base import Guard, GuardView
from riprap.guards._composition import CompositeGuard, has_recovered
from riprap.guards.regularization import MarginAnchor
from riprap.guards.replay import AdaptiveReplay, Replay, SelfDistillationBuffer
from riprap.guards.weights import Rollback
from riprap.types import Alert, Level

CRITICAL_PATIENCE = 100  # steps of replay under a critical alert before a rollback


class AutoGuard(CompositeGuard):
    """The default guard, controlled by the monitor.

    - While margins are stable it is idle, and training is bit-identical to training without it.
    - When margins are lost, or a break is forecast, `AdaptiveReplay` replays as many old examples
      as needed, at every second step or, where a score is no longer kept, at each.
    - If the model still answers the examples of a `SelfDistillationBuffer` as before, and a score
      is lost all the same, the examples are too few: from then on, while it replays, `MarginAnchor`
      holds the weights on which the margins of the monitored probes depend, near those of the
      first step with replay.
    - Where all this cannot hold a score, training goes on, and a warning and an action say so.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones. One that
            starts under its floor is protected too: at the score that it has.
        replay: required: source of old examples: a `SelfDistillationBuffer`, or a `Replay` of old
            batches, whose fraction is then the maximum share. An `AdaptiveReplay` is used
            unchanged.
        keep: how much of the old must stay: share of each behavior's score before training.
        anchor: whether to hold weights where replay does not suffice; False saves the memory of a
            copy of the trained weights, made at the first replay, and of one more, made then.
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
    state_attrs: ClassVar[tuple[str, ...]] = ("critical_since",)

    def __init__(
        self,
        behaviors: Sequence[Behavior | str] | None = None,
        *,
        replay: SelfDistillationBuffer | Replay | None = None,
        keep: float | None = None,
        anchor: bool = True,
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
        self.anchor = MarginAnchor(self.replay.behaviors) if anchor else None
        if self.anchor is not None:
            self.anchor.required = False  # where weights cannot be held, replay goes on alone
        if rollback is True:
            rollback = Rollback(self.replay.behaviors, every=CRITICAL_PATIENCE)
        self.rollback = rollback or None
        self._set_parts(
            self.replay, *filter(None, [self.anchor]), *filter(None, [self.rollback]), shadow=shadow
        )
        self.critical_since: dict[str, int] = {}  # first critical alert of each behavior

    def start(self, view: GuardView) -> None:
        """Forget the alerts of an earlier watch, and start the parts."""
        self.critical_since = {}
        for part in self.parts:
            part.part_of = self.name
        super().start(view)

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
        anchor = self.anchor
        if anchor is not None and self.replay.awake and not anchor.unavailable:
            anchor.remember(view)  # of the first step with replay: the scores are kept there
            if anchor.fisher or self.replay.has_too_few_examples(view):
                yield anchor
        if self.rollback is not None:
            yield self.rollback
