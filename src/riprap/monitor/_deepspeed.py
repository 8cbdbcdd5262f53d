"""Watch of a DeepSpeed engine: margins by forward passes, after each step that the engine takes.

The engine steps flat copies of the parameters, and no hook of torch sees the gradient or the
update. So nothing is read but the probes: every rank passes through all of them together, with the
same shapes, right after the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn

from riprap._distributed import find_deepspeed
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.monitor._probe_runner import ProbeRunner
from riprap.monitor._watch_session import MonitoredRun, WatchSession
from riprap.monitor._weight_sample import WeightSample
from riprap.types import RUN, Reading, ReadingStatus

FORWARD_ONLY = (
    "DeepSpeed steps inside its own engine: probes are evaluated by forward passes after each "
    "step, and no gradient, update or interference is read"
)


def find_engine(model: Any, optimizer: Any) -> Any | None:
    """Return DeepSpeed's engine or optimizer among what is to be watched; None: there is none."""
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    return next(filter(None, map(find_deepspeed, (*several, model))), None)


def engine_module(model: nn.Module) -> nn.Module:
    """Return the model inside an engine; any other model as it is."""
    return model.module if find_deepspeed(model) is model else model


def refuse_guard(guard: Guard | None) -> None:
    """Raise a `ConfigError` if a guard is to act on an engine."""
    if guard is not None:
        raise ConfigError(
            f"guard {guard.name}: DeepSpeed steps inside its own engine, where no gradient or "
            "update can be changed; train with DDP or FSDP2, or watch without a guard"
        )


class EngineHooks:
    """Calls `after_step` when DeepSpeed's optimizer has stepped, and `on_skip` when it has not.

    Its optimizers have no hooks: while watched, the object's own `step` is wrapped.
    """

    def __init__(
        self, engine: Any, after_step: Callable[[], None], on_skip: Callable[[], None]
    ) -> None:
        inner = getattr(engine, "optimizer", None)
        self._optimizer = engine if inner is None or not isinstance(engine, nn.Module) else inner
        if not callable(getattr(self._optimizer, "step", None)):
            raise ConfigError(
                f"cannot watch a {type(engine).__name__}: DeepSpeed steps inside its own engine, "
                "and no step() is found there; give the engine or the optimizer that "
                "deepspeed.initialize returned"
            )
        self.optimizers = [self._optimizer]
        self._after_step, self._on_skip = after_step, on_skip

    def attach(self) -> None:
        """Wrap `step`."""
        step = self._optimizer.step

        def watched(*arguments: Any, **options: Any) -> Any:
            result = step(*arguments, **options)
            if getattr(self._optimizer, "overflow", False):
                self._on_skip()
            else:
                self._after_step()
            return result

        self._own_step = vars(self._optimizer).get("step")
        self._optimizer.step = watched

    def remove(self) -> None:
        """Restore `step`."""
        if self._own_step is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own_step

    end = remove


class EngineSession(WatchSession):
    """Session of a watch of a DeepSpeed engine, without a guard."""

    def __init__(self, run: MonitoredRun, probe_runner: ProbeRunner, engine: Any) -> None:
        super().__init__(run, probe_runner, [], None)
        run.tracker.rate_sum = math.nan  # the engine's rates are not read
        skipped = partial(run.note_skipped_step, "the engine found an overflow")
        self.hooks = EngineHooks(engine, self.after_unread_step, skipped)  # type: ignore[assignment]

    def attach(self) -> None:
        """Wrap the engine's step, and record what cannot be read."""
        self.sample = WeightSample([])
        self.hooks.attach()
        step, status = self.run.step, ReadingStatus.NOT_RUN
        reading = Reading(step, RUN, "interference", state=status, detail=FORWARD_ONLY)
        self.run.record.add_readings([reading])
        self.run.notes.append(FORWARD_ONLY)

    def after_unread_step(self) -> None:
        """Count a step, and evaluate the probes if they are due; never fail."""
        run = self.run
        try:
            run.step += 1
            with run.meter.measure("hooks"):
                run.meter.count_step()
            if run.schedule.is_due(run.step, run.tracker.histories.values()):
                self.evaluate_probes(refresh=False)
            run.trackers.step(run.step)
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.record_failure(error)

    def read_update(self) -> None:
        """Do nothing: the update cannot be read."""

    @property
    def _ranks_evaluate_together(self) -> bool:
        return dist.is_initialized()

    def _weights_were_replaced(self) -> bool:
        return False  # a rank has a part of the weights, which are not sampled
