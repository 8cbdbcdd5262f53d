"""Capture and restore the full training state, as plain values and tensors.

For sharded parameters each rank stores its own part, and nothing is gathered.
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

LR_KEYS = ("lr", "initial_lr", "max_lr", "min_lr")  # schedulers add keys to a group

Checkpoint = dict[str, Any]


@dataclass
class TrainingSnapshot:
    """The training state that a checkpoint contains.

    It has the optimizer's parameters, options and state, the running statistics of the model's
    batch norms, the states of scheduler and scaler, and with `with_rng` the random generators.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any = None
    grad_scaler: Any = None
    with_rng: bool = True

    @property
    def parameters(self) -> list[Tensor]:
        """Parameters of the optimizer, in its order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def buffers(self) -> list[Tensor]:
        """Running statistics of the model's batch norms."""
        norms = [module for module in self.model.modules() if isinstance(module, _NormBase)]
        return [buffer for module in norms for buffer in module.buffers(recurse=False)]

    @torch.no_grad()
    def capture(self) -> Checkpoint:
        """Return a copy of the state, on the CPU."""
        groups, parameters = self.optimizer.param_groups, self.parameters
        scheduler, scaler = self.lr_scheduler, self.grad_scaler
        return {
            "parameters": cpu_copy(parameters),
            "buffers": cpu_copy(self.buffers),
            "param_groups": [
                {key: cpu_copy(value) for key, value in group.items() if key != "params"}
                for group in groups
            ],
            "optimizer_state": [cpu_copy(self.optimizer.state.get(p, {})) for p in parameters],
            "lr_scheduler": None if scheduler is None else cpu_copy(scheduler.state_dict()),
            "grad_scaler": None if scaler is None else cpu_copy(scaler.state_dict()),
            "rng": rng_state(parameters[0].device) if self.with_rng else None,
        }

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state that `capture` returned; the checkpoint stays valid."""
        parameters = self.parameters
        sizes = [to_local(parameter).numel() for parameter in parameters]
        if sizes != [part.numel() for part in checkpoint["parameters"]]:
            raise ConfigError(
                "guard rollback: the optimizer has other parameters than when the checkpoint was "
                "written; give it all of them before the watch begins"
            )
        for parameter, part in zip(parameters, checkpoint["parameters"], strict=True):
            to_local(parameter).copy_(part)
        for buffer, part in zip(self.buffers, checkpoint["buffers"], strict=True):
            buffer.copy_(part)
        groups = zip(self.optimizer.param_groups, checkpoint["param_groups"], strict=True)
        for group, options in groups:
            for key, value in options.items():
                _overwrite(group, key, value)
        for parameter, state in zip(parameters, checkpoint["optimizer_state"], strict=True):
            self._restore_optimizer_state(parameter, state)
        for name in ("lr_scheduler", "grad_scaler"):
            owner, state = getattr(self, name), checkpoint[name]
            if owner is not None and state is not None:
                owner.load_state_dict(copy.deepcopy(state))
        if checkpoint["rng"] is not None:
            set_rng_state(checkpoint["rng"], parameters[0].device)

    def _restore_optimizer_state(self, parameter: Tensor, saved: dict[str, Any]) -> None:
        if not saved:
            self.optimizer.state.pop(parameter, None)
            return
        state, shape = self.optimizer.state[parameter], to_local(parameter).shape
        for key in [key for key in state if key not in saved]:
            del state[key]
        for key, value in saved.items():
            if key not in state and isinstance(value, Tensor) and value.shape == shape:
                state[key] = torch.zeros_like(parameter, dtype=value.dtype)
            _overwrite(state, key, value)

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate, including the initial one of the scheduler."""
        for group in self.optimizer.param_groups:
            for key in LR_KEYS:
                if key in group:
                    _overwrite(group, key, group[key] * factor)
        for scheduler in _nested_schedulers(self.lr_scheduler):
            for name in ("base_lrs", "_last_lr"):
                if hasattr(scheduler, name):
                    setattr(scheduler, name, [rate * factor for rate in getattr(scheduler, name)])

    def learning_rates(
        self, checkpoint: Checkpoint | None = None, factor: float = 1.0
    ) -> dict[str, float]:
        """Return the learning rate of each group, now or in a checkpoint, times `factor`."""
        groups = self.optimizer.param_groups if checkpoint is None else checkpoint["param_groups"]
        rates = [factor * float(group["lr"]) for group in groups]
        if len(rates) == 1:
            return {"learning_rate": rates[0]}
        return {f"learning_rate_{i}": rate for i, rate in enumerate(rates)}


def cpu_copy(value: Any) -> Any:
    """Copy nested values; of tensors this rank's part, to the CPU."""
    if isinstance(value, Tensor):
        return to_local(value).detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: cpu_copy(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(cpu_copy(part) for part in value)
    return copy.deepcopy(value)


def _overwrite(target: dict[str, Any], key: str, value: Any) -> None:
    """Overwrite a tensor in place, because others may refer to it; replace other values."""
    old = target.get(key)
    if isinstance(old, Tensor) and isinstance(value, Tensor) and to_local(old).shape == value.shape:
        to_local(old).copy_(value)
    else:
        target[key] = cpu_copy(value)


def _nested_schedulers(scheduler: Any) -> Iterator[Any]:
    """Iterate over a scheduler, its parts, and the one inside a wrapper such as Accelerate's."""
    if scheduler is None:
        return
    yield scheduler
    for part in getattr(scheduler, "_schedulers", []):
        yield from _nested_schedulers(part)
    if not hasattr(scheduler, "base_lrs"):
        yield from _nested_schedulers(getattr(scheduler, "scheduler", None))


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of the random generators of torch (CPU and `device`), numpy and Python."""
    name, keys, *rest = np.random.get_state()
    own = device.type not in ("cpu", "meta")
    return {
        "torch": torch.get_rng_state(),
        "device": torch.get_device_module(device).get_rng_state(device) if own else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the state that `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        torch.get_device_module(device).set_rng_state(state["device"], device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
