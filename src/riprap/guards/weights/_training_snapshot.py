"""A checkpoint of training itself, as plain values and tensors: taken, put back, and slowed down.

Of sharded parameters each rank keeps its own part, and nothing is gathered.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from riprap.errors import ConfigError
from riprap.linalg import to_local

LR_KEYS = ("lr", "initial_lr", "max_lr", "min_lr")  # of a group: schedules keep their own beside lr

Checkpoint = dict[str, Any]


@dataclass
class TrainingSnapshot:
    """What a checkpoint is of.

    Attributes:
        model: its running statistics are kept; its weights are the optimizer's.
        optimizer: with all that it trains.
        schedule, scaler: of the learning rate and of the loss, where there is one; anything with
            `state_dict` and `load_state_dict`.
        generators: whether the random generators are kept as well.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any = None
    grad_scaler: Any = None
    rng: bool = True

    @property
    def parameters(self) -> list[Tensor]:
        """All that the optimizer holds, in its order."""
        return [one for group in self.optimizer.param_groups for one in group["params"]]

    @property
    def statistics(self) -> list[Tensor]:
        """Running statistics of the model's batch norms."""
        norms = [module for module in self.model.modules() if isinstance(module, _NormBase)]
        return [buffer for module in norms for buffer in module.buffers(recurse=False)]

    @torch.no_grad()
    def capture(self) -> Checkpoint:
        """A copy of everything, on the CPU."""
        groups = self.optimizer.param_groups
        return {
            "parameters": cpu_copy(self.parameters),
            "statistics": cpu_copy(self.statistics),
            "groups": [{k: cpu_copy(v) for k, v in g.items() if k != "params"} for g in groups],
            "moments": [cpu_copy(self.optimizer.state.get(one, {})) for one in self.parameters],
            "schedule": None if self.lr_scheduler is None else cpu_copy(self.lr_scheduler.state_dict()),
            "scaler": None if self.grad_scaler is None else cpu_copy(self.grad_scaler.state_dict()),
            "generators": rng_state(self.parameters[0].device) if self.rng else None,
        }

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Make everything as it was; only then is the checkpoint's content in use.

        Raises:
            ConfigError: the optimizer holds other parameters than it did.
        """
        sizes = [to_local(one).numel() for one in self.parameters]
        if sizes != [part.numel() for part in checkpoint["parameters"]]:
            raise ConfigError(
                "guard rollback: the optimizer holds other parameters than when the checkpoint was "
                "taken; give it all of them before the watch begins"
            )
        for one, part in zip(self.parameters, checkpoint["parameters"], strict=True):
            to_local(one).copy_(part)
        for one, part in zip(self.statistics, checkpoint["statistics"], strict=True):
            one.copy_(part)
        for group, options in zip(self.optimizer.param_groups, checkpoint["groups"], strict=True):
            for key, value in options.items():
                _overwrite(group, key, value)
        for one, moments in zip(self.parameters, checkpoint["moments"], strict=True):
            self._restore_optimizer_state(one, moments)
        if self.lr_scheduler is not None and checkpoint["schedule"] is not None:
            self.lr_scheduler.load_state_dict(copy.deepcopy(checkpoint["schedule"]))
        if self.grad_scaler is not None and checkpoint["scaler"] is not None:
            self.grad_scaler.load_state_dict(copy.deepcopy(checkpoint["scaler"]))
        if checkpoint["generators"] is not None:
            set_rng_state(checkpoint["generators"], self.parameters[0].device)

    def _restore_optimizer_state(self, one: Tensor, moments: dict[str, Any]) -> None:
        if not moments:
            self.optimizer.state.pop(one, None)
            return
        own = self.optimizer.state[one]
        for key in [key for key in own if key not in moments]:
            del own[key]
        for key, value in moments.items():
            if key not in own and isinstance(value, Tensor) and value.shape == to_local(one).shape:
                own[key] = torch.zeros_like(one, dtype=value.dtype)
            _overwrite(own, key, value)

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate, also the one that the schedule starts from."""
        for group in self.optimizer.param_groups:
            for key in LR_KEYS:
                if key in group:
                    _overwrite(group, key, group[key] * factor)
        for schedule in _nested_schedulers(self.lr_scheduler):
            for name in ("base_lrs", "_last_lr"):
                if hasattr(schedule, name):
                    setattr(schedule, name, [rate * factor for rate in getattr(schedule, name)])

    def learning_rates(self, checkpoint: Checkpoint | None = None, factor: float = 1.0) -> dict[str, float]:
        """The learning rate of each group, now or in a checkpoint, times `factor`."""
        groups = self.optimizer.param_groups if checkpoint is None else checkpoint["groups"]
        names = [f"learning_rate_{i}" for i in range(len(groups))]
        names = ["learning_rate"] if len(groups) == 1 else names
        return {n: factor * float(group["lr"]) for n, group in zip(names, groups, strict=True)}


def cpu_copy(value: Any) -> Any:
    """A copy of nested values; of tensors this rank's part, on the CPU."""
    if isinstance(value, Tensor):
        return to_local(value).detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: cpu_copy(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(cpu_copy(part) for part in value)
    return copy.deepcopy(value)


def _overwrite(into: dict[str, Any], key: str, value: Any) -> None:
    """Overwrite a tensor in place, for others may hold it; anything else by a copy."""
    old = into.get(key)
    if isinstance(old, Tensor) and isinstance(value, Tensor) and to_local(old).shape == value.shape:
        to_local(old).copy_(value)
    else:
        into[key] = cpu_copy(value)


def _nested_schedulers(schedule: Any) -> Iterator[Any]:
    """A schedule, those that it is made of, and the one inside a wrapper such as Accelerate's."""
    if schedule is None:
        return
    yield schedule
    for part in getattr(schedule, "_schedulers", []):
        yield from _nested_schedulers(part)
    if not hasattr(schedule, "base_lrs"):
        yield from _nested_schedulers(getattr(schedule, "scheduler", None))


def rng_state(device: torch.device) -> dict[str, Any]:
    """The random generators of torch (CPU, and the device's), numpy and Python."""
    name, keys, *rest = np.random.get_state()
    there = device.type not in ("cpu", "meta")
    module = torch.get_device_module(device) if there else None
    return {
        "torch": torch.get_rng_state(),
        "device": None if module is None else module.get_rng_state(device),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `generators` gave."""
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        torch.get_device_module(device).set_rng_state(state["device"], device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
