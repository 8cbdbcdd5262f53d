"""Rollback: restore the last healthy state after an alert, and continue at a lower rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from riprap._distributed import warn_once
from riprap.detectors import score
from riprap.errors import RecordError
from riprap.guards._base import BehaviorGuard, GuardView, Proposal, RestoreProposal
from riprap.guards.weights._checkpoint_ring import CheckpointRing
from riprap.guards.weights._training_snapshot import Checkpoint, TrainingSnapshot
from riprap.linalg import to_local
from riprap.types import Alert, Level


@dataclass
class Rollback(BehaviorGuard):
    """Restore the last healthy state after an alert, and continue with a lower learning rate.

    A checkpoint is taken after a probe evaluation that showed a healthy state: all protected scores
    are at or above their floors, and no alert of `level` is active. It contains the optimizer's
    parameters and state, running statistics, scheduler, scaler and random generators. The data
    belong to the loop and are not rewound. An alert is acted on only if it still holds: a behavior
    that has recovered by then is not rolled back.

    Source: ours, after the practice for loss spikes (restart from an earlier checkpoint and skip
    the data that led to the spike: PaLM, 2204.02311, 5.1), triggered by a behavior instead of the
    loss, in one process.

    Args:
        behaviors: behaviors to protect, as objects or names; None: all monitored ones. One that
            starts under its floor is left out, with a warning: no state of it is healthy.
        every: minimum number of steps between two checkpoints; the next probe evaluation takes one.
        max_checkpoints: number of checkpoints to keep. Each is as large as the trained weights with
            their optimizer state (three times the weights under Adam).
        checkpoint_dir: folder for checkpoints as safetensors files, for one run only; None: they
            stay in CPU memory and become part of the monitor's state.
        level: the mildest alert level that triggers a rollback.
        lr_factor: factor of the learning rate at each rollback, permanently.
        max_rollbacks: number of rollbacks after which training continues.
        keep_learning: never restore the state before the first step, nor the same state twice, and
            never ask training to stop: where that would be needed, record why nothing was done, and
            let training go on. False: protect the behaviors at any price. At the alert after the
            last rollback the state is restored once more, and training is asked to stop
            (`Monitor.should_stop`).
        lr_scheduler, grad_scaler: of the training loop; the integrations pass those of the trainer.
        restore_rng: restore the random generators too. Use False for a loop that draws its batches
            from them, because it would draw the same data again.

    Raises:
        ConfigError: an argument is out of range; in `start`, the learning-rate scheduler is
            missing, or with `keep_learning=False` no behavior, or not each named one, is healthy.
    """

    every: int = 50
    max_checkpoints: int = 2
    checkpoint_dir: str | Path | None = None
    level: str = "critical"
    lr_factor: float = 0.5
    max_rollbacks: int = 3
    keep_learning: bool = True
    lr_scheduler: Any = field(default=None, repr=False)
    grad_scaler: Any = field(default=None, repr=False)
    restore_rng: bool = True
    alerted: list[str] = field(default_factory=list, init=False, repr=False)
    rollback_count: int = field(default=0, init=False, repr=False)
    gave_up_at: int | None = field(default=None, init=False, repr=False)
    last_checkpoint_step: int = field(default=0, init=False, repr=False)
    rollbacks_before: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    restored_steps: list[int] = field(default_factory=list, init=False, repr=False)

    name: ClassVar[str] = "rollback"
    source: ClassVar[str] = "ours, after 2204.02311"
    fidelity: ClassVar[str] = "variant"
    state_attrs: ClassVar[tuple[str, ...]] = (
        "alerted",
        "rollback_count",
        "gave_up_at",
        "last_checkpoint_step",
        "rollbacks_before",
        "restored_steps",
    )

    def __post_init__(self) -> None:
        if self.level not in list(Level):
            raise self._error(f"level={self.level!r}; choose {', '.join(Level)}")
        for name in ("every", "max_checkpoints"):
            if getattr(self, name) < 1:
                raise self._error(f"{name}={getattr(self, name)}; it must be 1 or more")
        if not 0 < self.lr_factor <= 1 or self.max_rollbacks < 0:
            raise self._error(
                f"lr_factor={self.lr_factor}, max_rollbacks={self.max_rollbacks}; lr_factor must "
                "lie in (0, 1], and max_rollbacks must be 0 or more"
            )
        self._trainer_state: dict[str, Any] = {}

    def attach_trainer_state(self, lr_scheduler: Any = None, grad_scaler: Any = None) -> None:
        """Store the trainer's scheduler and scaler, for use if none was given."""
        self._trainer_state = {"lr_scheduler": lr_scheduler, "grad_scaler": grad_scaler}

    def start(self, view: GuardView) -> None:
        """Check the setup, and take the first checkpoint before the first step."""
        histories = [view.histories[behavior.name] for behavior in self.select_behaviors(view)]
        healthy = [bool(history.steps) and history.healthy_at_start for history in histories]
        unhealthy = [name for name, well in zip(self.names, healthy, strict=True) if not well]
        self.names = [name for name in self.names if name not in unhealthy]
        if unhealthy and not self.keep_learning and (self.behaviors is not None or not self.names):
            raise self._error(
                f"behavior {unhealthy[0]!r} is under its floor before training, so no state is "
                "healthy; lower its floor, or protect other behaviors"
            )
        if unhealthy:
            warn_once(
                f"guard {self.label}: {', '.join(map(repr, unhealthy))} is under its floor before "
                "training, so no state of it is healthy: it is left out, and never rolled back"
            )
        lr_scheduler = self.lr_scheduler or self._trainer_state.get("lr_scheduler")
        grad_scaler = self.grad_scaler or self._trainer_state.get("grad_scaler")
        if lr_scheduler is None and any("initial_lr" in g for g in view.optimizer.param_groups):
            raise self._error(
                "the optimizer has a learning-rate schedule, which would undo the cut of the "
                "learning rate; give Rollback(lr_scheduler=...)"
            )
        self._training = TrainingSnapshot(
            view.model, view.optimizer, lr_scheduler, grad_scaler, self.restore_rng
        )
        self._held = len(self._training.parameters)
        folder = None if self.checkpoint_dir is None else Path(self.checkpoint_dir)
        device = to_local(view.parameters[0]).device
        self._ring = CheckpointRing(self.max_checkpoints, folder, device)
        self.alerted, self.rollback_count, self.gave_up_at = [], 0, None
        self.last_checkpoint_step, self.rollbacks_before = view.step, {}
        self.restored_steps = []
        if view.step == 0 and not self.keep_learning:
            self._save_checkpoint(0)

    def extend(self, view: GuardView, joined: Sequence[int]) -> None:
        """Go on if the checkpoints hold the parameters that join; see `Guard.extend`."""
        if not self._ring.steps:
            self._held = len(self._training.parameters)
        if self._held != len(self._training.parameters):
            raise self._error(
                "parameters were added to the optimizer, and earlier checkpoints do not hold them: "
                "give all parameters to the optimizer before the watch begins, and freeze those "
                "that join later with requires_grad_(False)"
            )

    def on_alert(self, alert: Alert) -> None:
        """Store the alerted behavior for the hook that follows."""
        serious = alert.level.rank >= Level(self.level).rank
        if serious and alert.behavior in self.names and alert.behavior not in self.alerted:
            self.alerted.append(alert.behavior)

    def on_probe_evaluation(self, view: GuardView) -> Proposal | None:
        """Roll back if an alert holds, or take a checkpoint if one is due and all is healthy."""
        if not self.names:
            return None
        alerted, self.alerted = self.alerted, []
        holding = [name for name in alerted if self._holds(view, name)]
        if holding:
            return self._roll_back(view, ", ".join(holding))
        # A behavior that could not be measured now is judged at the next evaluation.
        self.alerted = [name for name in alerted if view.histories[name].step < view.step]
        missing = not self._ring.steps and not self.keep_learning
        due = missing or view.step - self.last_checkpoint_step >= self.every
        if due and self._all_healthy(view):
            try:
                self._save_checkpoint(view.step)
            except RecordError as error:
                return Proposal(detail=f"no checkpoint was taken: {error}")
        recovered = [name for name in alerted if name not in self.alerted]
        if recovered:
            return Proposal(detail=f"{', '.join(recovered)}: recovered, so nothing was restored")
        return None

    def _holds(self, view: GuardView, name: str) -> bool:
        """Return whether a behavior that had an alert is still in danger in this evaluation."""
        history, level = view.histories[name], view.active_levels.get(name)
        if history.step < view.step:  # not measured: its margins were not finite, or it failed
            return history.diverged_step is not None
        alerted = level is not None and level.rank >= Level(self.level).rank
        return alerted or not score(history.margins[-1]) >= history.floor

    def _all_healthy(self, view: GuardView) -> bool:
        return all(
            view.histories[name].step == view.step and not self._holds(view, name)
            for name in self.names
        )

    def _save_checkpoint(self, step: int) -> None:
        self._ring.make_room()
        self._ring.add(step, self._training.capture())
        counts = self.rollbacks_before | {step: self.rollback_count}
        self.rollbacks_before = {stored: counts[stored] for stored in self._ring.steps}
        self.last_checkpoint_step = step

    def _roll_back(self, view: GuardView, names: str) -> Proposal:
        if self.gave_up_at is not None:
            return Proposal(detail=f"{names}: training was asked to stop at step {self.gave_up_at}")
        step, checkpoint, lost = self._newest_readable()
        last = self.rollback_count >= self.max_rollbacks
        if self.keep_learning:
            reason = ""
            if checkpoint is None:
                reason = f"no later state than the start was healthy{lost}"
            elif step in self.restored_steps:
                reason = f"the state of step {step} was restored before, and did not last"
            elif last:
                reason = f"there were {self.rollback_count} rollbacks already"
            if reason:
                detail = f"{names}: nothing was restored, and training goes on: {reason}"
                return Proposal(detail=detail)
        if checkpoint is None:
            return Proposal(detail=f"{names}: no healthy checkpoint to restore{lost}")
        factor = self.lr_factor ** (self.rollback_count + 1 - self.rollbacks_before[step])
        detail = f"{names}: rolled back from step {view.step} to the state of step {step}{lost}"
        if last:
            detail += f"; after {self.rollback_count} earlier rollbacks training should stop"

        def restore() -> None:
            self._training.restore(checkpoint)
            self._training.scale_lr(factor)
            self.rollback_count, self.last_checkpoint_step = self.rollback_count + 1, view.step
            self.gave_up_at = view.step if last else None
            self.restored_steps.append(step)

        before = self._training.learning_rates()
        after = self._training.learning_rates(checkpoint, factor)
        stop = f"guard {self.label}: {detail}" if last else ""
        return RestoreProposal(None, detail, before, after, stop, to_step=step, restore=restore)

    def _newest_readable(self) -> tuple[int, Checkpoint | None, str]:
        """Return the step and checkpoint of the newest readable one, with errors of newer ones."""
        lost = ""
        for step in reversed(self._ring.steps):
            try:
                return step, self._ring.read(step), lost
            except RecordError as error:
                lost += f" ({error})"
        return 0, None, lost

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the ring; with `checkpoint_dir` only the steps of its files."""
        return {**super().state_dict(), "ring": self._ring.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._ring.load_state_dict(state["ring"])
