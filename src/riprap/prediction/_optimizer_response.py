"""Response of an optimizer to a gradient: by how much a steady gradient moves each weight."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from riprap._text import first_line
from riprap.errors import ConfigError
from riprap.linalg import Vector
from riprap.selection import apply_preconditioner

TRIAL_SHAPE, TRIAL_STEPS, TRIAL_RATE = (4, 6), 200, 1e-3
TOLERANCE = 0.05  # relative; between the elements of one trial


def rebuild(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """Make an optimizer of the same kind and settings for other parameters, without a state."""
    kind: Any = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in accepted}
    made: Optimizer = kind(groups, **options)
    return made


def base_rate(group: dict[str, Any]) -> float:
    """Return the rate of a parameter group that a schedule's factors multiply.

    It is the rate with which the optimizer was made: its scheduler keeps it, if it has one.
    """
    return float(group.get("initial_lr", group["lr"]))


class OptimizerResponse:
    """Linear response of an optimizer: Δθ = −s · g, element by element, in one step at full rate.

    The full rate of a parameter group is the largest rate that it gets in the planned steps. s is
    the rate times Adam's preconditioner 1 / (√v̂ + ε), or the rate alone for plain descent;
    times the gain of momentum, 1 / (1 − μ) for a gradient that stays. Whether this describes the
    optimizer is tried on a small parameter: the optimizer takes steps on one gradient, and its last
    step must be the predicted one up to a common factor, which is the gain.

    Args:
        optimizer: never stepped here.
        largest: largest planned rate, relative to the base rate of each group.

    Raises:
        ConfigError: the optimizer moves weights otherwise.
    """

    def __init__(self, optimizer: Optimizer, largest: float = 1.0) -> None:
        self._optimizer = optimizer
        self._gains = [_gain(optimizer, group) for group in optimizer.param_groups]
        self._peaks = [base_rate(group) * largest for group in optimizer.param_groups]

    def set_rate(self, factor: float) -> None:
        """Set the learning rate of each group to a share of its full rate."""
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor

    def scales(self, parameters: Sequence[Tensor]) -> Vector:
        """Return s at full rate, from the optimizer's state as it is now.

        It is 0 for a weight that no step has reached: Adam has no scale for it.
        """
        self.set_rate(1.0)
        ones: Vector = [torch.ones_like(parameter) for parameter in parameters]
        response = apply_preconditioner(ones, list(parameters), [self._optimizer])
        own = {
            id(parameter): index
            for index, group in enumerate(self._optimizer.param_groups)
            for parameter in group["params"]
        }
        scales = []
        for part, parameter in zip(response, parameters, strict=True):
            index = own.get(id(parameter))
            scale = -part
            if index is not None:
                eps = float(self._optimizer.param_groups[index].get("eps", 0.0))
                if eps > 0:  # √v̂ is below ε where no gradient has come yet
                    scale[scale > self._peaks[index] / (2 * eps)] = 0.0
                scale = scale * self._gains[index]
            scales.append(scale)
        return scales


def _gain(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """Return the last step of a trial over the predicted one; 1 for an empty group."""
    if not group["params"]:
        return 1.0
    name = type(optimizer).__name__
    device = group["params"][0].device
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(TRIAL_SHAPE, generator=generator).to(device)
    parameter = nn.Parameter(torch.zeros(TRIAL_SHAPE, device=device))
    trial = {key: value for key, value in group.items() if key != "initial_lr"}
    trial |= {"params": [parameter], "lr": TRIAL_RATE}
    trial |= {"weight_decay": 0.0} if "weight_decay" in group else {}
    try:
        twin = rebuild(optimizer, [trial])
        before = parameter.detach().clone()
        for _ in range(TRIAL_STEPS):
            before = parameter.detach().clone()
            parameter.grad = gradient.clone()
            twin.step()
        expected = apply_preconditioner([gradient], [parameter], [twin])[0]
    except Exception as error:  # an optimizer of any library, tried outside its loop
        why = first_line(error, type(error).__name__)
        raise ConfigError(f"{_cannot_read(name)} ({why})") from error
    ratios = (parameter.detach() - before) / expected
    gain = float(ratios.median())
    if not (ratios.isfinite().all() and gain > 0) or ((ratios / gain - 1).abs() > TOLERANCE).any():
        raise ConfigError(_cannot_read(name))
    return gain


def _cannot_read(name: str) -> str:
    return (
        f"the steps of {name} cannot be predicted from a gradient and its state: give SGD, Adam, "
        "AdamW or NAdam at the rate at which it would move the weights about as far"
    )
