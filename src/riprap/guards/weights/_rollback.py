"""Rollback that goes on: back to the last healthy state, and on from there with less haste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from riprap.behaviors import Behavior
from riprap.detectors import score
from riprap.errors import ConfigError, RecordError
from riprap.guards._base import Guard, GuardView, Proposal, Return, names_of
from riprap.guards.weights._checkpoint_ring import Ring
from riprap.guards.weights._training_snapshot import Checkpoint, Training
from riprap.linalg import to_local
from riprap.types import Alert, Level


@dataclass
class Rollback(Guard):
    """On an alert: the last healthy state is put back, and training goes on with later data.

    Checkpoints are taken at visits to the probes, so that each is of a state that was measured to
    be healthy: all protected scores at or above their floors, no alert of `level` standing. One
    holds all that the optimizer trains and remembers, running statistics, schedule, scaler and
    random generators. The data are the loop's, and are not rewound.

    Source: ours. Loss-spike practice (restart from an earlier checkpoint, skip the data that led to
    the spike: PaLM, 2204.02311, 5.1), set off by a behaviour in place of the loss, in one process.

    Args:
        behaviors: what to protect, by behaviour or by name; None: all that are watched and were
            healthy before training.
        every: steps between two checkpoints, at least; the next visit takes one.
        keep: how many are kept: each is as large as the trained weights and what the optimizer
            remembers of them (three times the weights under Adam).
        folder: where they are written, as safetensors; None: they are kept in (CPU) memory, and
            become part of the monitor's state. A folder is for one run.
        level: the mildest alert to go back on.
        cut: the learning rate is multiplied by this each time, for good.
        at_most: how often training goes on from an earlier state. At the next alert it is put back
            once more and asked to stop, by `Monitor.should_stop`.
        schedule, scaler: of the learning rate and of the loss; the integrations give those of their
            trainer.
        generators: put the random generators back too. False for a loop that draws its batches
            from them: it would meet the same data again.

    Raises:
        ConfigError: a number makes no sense; at the start, nothing healthy to protect, or a
            schedule that is not given.
    """

    behaviors: Sequence[Behavior | str] | None = None
    every: int = 50
    keep: int = 2
    folder: str | Path | None = None
    level: str = "critical"
    cut: float = 0.5
    at_most: int = 3
    schedule: Any = field(default=None, repr=False)
    scaler: Any = field(default=None, repr=False)
    generators: bool = True
    alerted: list[str] = field(default_factory=list, init=False, repr=False)
    count: int = field(default=0, init=False, repr=False)
    gave_up: int | None = field(default=None, init=False, repr=False)
    since: int = field(default=0, init=False, repr=False)
    cuts: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "rollback"
    source: ClassVar[str] = "ours, after 2204.02311"
    verdict: ClassVar[str] = "variant"
    remembers: ClassVar[tuple[str, ...]] = ("alerted", "count", "gave_up", "since", "cuts")

    def __post_init__(self) -> None:
        if self.level not in list(Level):
            raise ConfigError(f"guard rollback: level={self.level!r}; choose {', '.join(Level)}")
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"guard rollback: {name}={getattr(self, name)}; 1 or more")
        if not 0 < self.cut <= 1 or self.at_most < 0:
            raise ConfigError(
                f"guard rollback: cut={self.cut}, at_most={self.at_most}; cut lies in (0, 1], and "
                "at_most is 0 or more"
            )
        self._supplied: dict[str, Any] = {}

    def supply(self, schedule: Any = None, scaler: Any = None) -> None:
        """The trainer's own schedule and scaler, used where none was given."""
        self._supplied = {"schedule": schedule, "scaler": scaler}

    def start(self, view: GuardView) -> None:
        """Check that it can work, and before the first step keep the first state."""
        names = names_of(self.name, self.behaviors, view.behaviors)
        ill = [name for name in names if not _sound(view, name)]
        self._names = [name for name in names if name not in ill]
        if not self._names or (ill and self.behaviors is not None):
            raise ConfigError(
                f"guard rollback: behaviour {ill[0]!r} is under its floor before training, so no "
                "state is healthy: lower its floor, or protect others"
            )
        schedule, scaler = (
            getattr(self, name) or self._supplied.get(name) for name in ("schedule", "scaler")
        )
        if schedule is None and any("initial_lr" in g for g in view.optimizer.param_groups):
            raise ConfigError(
                "guard rollback: the optimizer has a learning-rate schedule, which would undo the "
                "cut: give Rollback(schedule=...)"
            )
        self._training = Training(view.model, view.optimizer, schedule, scaler, self.generators)
        folder = None if self.folder is None else Path(self.folder)
        self._ring = Ring(self.keep, folder, to_local(view.parameters[0]).device)
        self.alerted, self.count, self.gave_up, self.since, self.cuts = [], 0, None, view.step, {}
        if view.step == 0:
            self._take(0)

    def on_alert(self, alert: Alert) -> None:
        """Note whose alert it is, for the visit that raised it."""
        serious = alert.level.rank >= Level(self.level).rank
        if serious and alert.behavior in self._names and alert.behavior not in self.alerted:
            self.alerted.append(alert.behavior)

    def on_visit(self, view: GuardView) -> Proposal | None:
        """Go back on an alert, or take a checkpoint where it is time and all is well."""
        if self.alerted:
            who, self.alerted = ", ".join(self.alerted), []
            return self._back(view, who)
        due = not self._ring.steps or view.step - self.since >= self.every
        if due and self._healthy(view):
            try:
                self._take(view.step)
            except RecordError as error:
                return Proposal(detail=f"no checkpoint: {error}")
        return None

    def _healthy(self, view: GuardView) -> bool:
        return all(
            view.tracks[name].step == view.step  # seen now, not at an earlier visit
            and score(view.tracks[name].margins[-1]) >= view.tracks[name].floor
            and not (name in view.standing and view.standing[name].rank >= Level(self.level).rank)
            for name in self._names
        )

    def _take(self, step: int) -> None:
        self._ring.add(step, self._training.take())
        kept = self.cuts | {step: self.count}
        self.cuts, self.since = {one: kept[one] for one in self._ring.steps}, step

    def _back(self, view: GuardView, who: str) -> Proposal:
        if self.gave_up is not None:
            return Proposal(detail=f"{who}: training was asked to stop at step {self.gave_up}")
        step, checkpoint, lost = self._newest()
        if checkpoint is None:
            return Proposal(detail=f"{who}: no healthy checkpoint to go back to{lost}")
        last = self.count >= self.at_most
        factor = self.cut ** (self.count + 1 - self.cuts[step])
        detail = f"{who}: from step {view.step} to the state of step {step}{lost}"
        if last:
            detail += f"; after {self.count} rollbacks before it training is to stop"

        def put_back() -> None:
            self._training.put_back(checkpoint)
            self._training.slow_down(factor)
            self.count, self.since = self.count + 1, view.step
            self.gave_up = view.step if last else None

        before, after = self._training.rates(), self._training.rates(checkpoint, factor)
        stop = f"guard {self.name}: {detail}" if last else ""
        return Return(None, detail, before, after, stop, to=step, put_back=put_back)

    def _newest(self) -> tuple[int, Checkpoint | None, str]:
        """The newest that can be read, its step, and what was said of others."""
        lost = ""
        for step in reversed(self._ring.steps):
            try:
                return step, self._ring.read(step), lost
            except RecordError as error:
                lost += f" ({error})"
        return 0, None, lost

    def state_dict(self) -> dict[str, Any]:
        """Counts and the ring; with `folder` the steps whose files it needs."""
        return {**super().state_dict(), "ring": self._ring.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state)
        self._ring.load_state_dict(state["ring"])


def _sound(view: GuardView, name: str) -> bool:
    """Whether a behaviour was healthy before training."""
    return bool(view.tracks[name].steps) and view.tracks[name].healthy_at_start


def supply(guard: Guard, **own: Any) -> None:
    """Give the rollbacks in a guard the schedule and scaler of the trainer that it works under."""
    for leaf in guard.leaves():
        if isinstance(leaf, Rollback):
            leaf.supply(**own)
