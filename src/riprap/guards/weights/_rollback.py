"""Rollback that goes on: back to the last healthy state, and on from there with less haste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from riprap.behaviors import Behavior
from riprap.detectors import score
from riprap.errors import ConfigError, RecordError
from riprap.guards._base import Guard, GuardView, Proposal, RestoreProposal, behavior_names
from riprap.guards.weights._checkpoint_ring import CheckpointRing
from riprap.guards.weights._training_snapshot import Checkpoint, TrainingSnapshot
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
    max_checkpoints: int = 2
    checkpoint_dir: str | Path | None = None
    level: str = "critical"
    lr_factor: float = 0.5
    max_rollbacks: int = 3
    lr_scheduler: Any = field(default=None, repr=False)
    grad_scaler: Any = field(default=None, repr=False)
    restore_rng: bool = True
    alerted: list[str] = field(default_factory=list, init=False, repr=False)
    rollback_count: int = field(default=0, init=False, repr=False)
    gave_up_at: int | None = field(default=None, init=False, repr=False)
    last_checkpoint_step: int = field(default=0, init=False, repr=False)
    rollbacks_before: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    name: ClassVar[str] = "rollback"
    source: ClassVar[str] = "ours, after 2204.02311"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = (
        "alerted",
        "rollback_count",
        "gave_up_at",
        "last_checkpoint_step",
        "rollbacks_before",
    )

    def __post_init__(self) -> None:
        if self.level not in list(Level):
            raise ConfigError(f"guard rollback: level={self.level!r}; choose {', '.join(Level)}")
        for name in ("every", "max_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"guard rollback: {name}={getattr(self, name)}; 1 or more")
        if not 0 < self.lr_factor <= 1 or self.max_rollbacks < 0:
            raise ConfigError(
                f"guard rollback: lr_factor={self.lr_factor}, max_rollbacks={self.max_rollbacks}; "
                "lr_factor must lie in (0, 1], and max_rollbacks must be 0 or more"
            )
        self._trainer_state: dict[str, Any] = {}

    def attach_trainer_state(self, lr_scheduler: Any = None, grad_scaler: Any = None) -> None:
        """The trainer's own schedule and scaler, used where none was given."""
        self._trainer_state = {"lr_scheduler": lr_scheduler, "grad_scaler": grad_scaler}

    def start(self, view: GuardView) -> None:
        """Check that it can work, and before the first step keep the first state."""
        names = behavior_names(self.name, self.behaviors, view.behaviors)
        unhealthy = [name for name in names if not _was_healthy(view, name)]
        self._names = [name for name in names if name not in unhealthy]
        if not self._names or (unhealthy and self.behaviors is not None):
            raise ConfigError(
                f"guard rollback: behavior {unhealthy[0]!r} is under its floor before training, so no "
                "state is healthy: lower its floor, or protect others"
            )
        lr_scheduler = self.lr_scheduler or self._trainer_state.get("lr_scheduler")
        grad_scaler = self.grad_scaler or self._trainer_state.get("grad_scaler")
        if lr_scheduler is None and any("initial_lr" in g for g in view.optimizer.param_groups):
            raise ConfigError(
                "guard rollback: the optimizer has a learning-rate schedule, which would undo the "
                "cut of the learning rate; give Rollback(lr_scheduler=...)"
            )
        self._training = TrainingSnapshot(
            view.model, view.optimizer, lr_scheduler, grad_scaler, self.restore_rng
        )
        folder = None if self.checkpoint_dir is None else Path(self.checkpoint_dir)
        self._ring = CheckpointRing(self.max_checkpoints, folder, to_local(view.parameters[0]).device)
        self.alerted, self.rollback_count, self.gave_up_at = [], 0, None
        self.last_checkpoint_step, self.rollbacks_before = view.step, {}
        if view.step == 0:
            self._save_checkpoint(0)

    def on_alert(self, alert: Alert) -> None:
        """Note whose alert it is, for the visit that raised it."""
        serious = alert.level.rank >= Level(self.level).rank
        if serious and alert.behavior in self._names and alert.behavior not in self.alerted:
            self.alerted.append(alert.behavior)

    def on_probe_evaluation(self, view: GuardView) -> Proposal | None:
        """Go back on an alert, or take a checkpoint where it is time and all is well."""
        if self.alerted:
            who, self.alerted = ", ".join(self.alerted), []
            return self._roll_back(view, who)
        due = not self._ring.steps or view.step - self.last_checkpoint_step >= self.every
        if due and self._all_healthy(view):
            try:
                self._save_checkpoint(view.step)
            except RecordError as error:
                return Proposal(detail=f"no checkpoint: {error}")
        return None

    def _all_healthy(self, view: GuardView) -> bool:
        return all(
            view.histories[name].step == view.step  # seen now, not at an earlier visit
            and score(view.histories[name].margins[-1]) >= view.histories[name].floor
            and not (name in view.active_levels and view.active_levels[name].rank >= Level(self.level).rank)
            for name in self._names
        )

    def _save_checkpoint(self, step: int) -> None:
        self._ring.add(step, self._training.capture())
        counts = self.rollbacks_before | {step: self.rollback_count}
        self.rollbacks_before = {stored: counts[stored] for stored in self._ring.steps}
        self.last_checkpoint_step = step

    def _roll_back(self, view: GuardView, who: str) -> Proposal:
        if self.gave_up_at is not None:
            return Proposal(detail=f"{who}: training was asked to stop at step {self.gave_up_at}")
        step, checkpoint, lost = self._newest_readable()
        if checkpoint is None:
            return Proposal(detail=f"{who}: no healthy checkpoint to go back to{lost}")
        last = self.rollback_count >= self.max_rollbacks
        factor = self.lr_factor ** (self.rollback_count + 1 - self.rollbacks_before[step])
        detail = f"{who}: from step {view.step} to the state of step {step}{lost}"
        if last:
            detail += f"; after {self.rollback_count} rollbacks before it training is to stop"

        def restore() -> None:
            self._training.restore(checkpoint)
            self._training.scale_lr(factor)
            self.rollback_count, self.last_checkpoint_step = self.rollback_count + 1, view.step
            self.gave_up_at = view.step if last else None

        before = self._training.learning_rates()
        after = self._training.learning_rates(checkpoint, factor)
        stop = f"guard {self.name}: {detail}" if last else ""
        return RestoreProposal(None, detail, before, after, stop, to_step=step, restore=restore)

    def _newest_readable(self) -> tuple[int, Checkpoint | None, str]:
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


def _was_healthy(view: GuardView, name: str) -> bool:
    """Whether a behaviour was healthy before training."""
    return bool(view.histories[name].steps) and view.histories[name].healthy_at_start
