"""Behaviors reduced to the probes that the model passes before training."""

from __future__ import annotations

from torch import nn

from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.errors import ConfigError


def keep_passing(behavior: Behavior, model: nn.Module) -> Behavior:
    """Return the behavior on the probes whose margin is positive now.

    Raises:
        ConfigError: the model passes none of them.
    """
    return behavior.subset(passing_probes(behavior, model)[0])


def passing_probes(behavior: Behavior, model: nn.Module) -> tuple[list[int], int]:
    """Return the indices of the probes whose margin is positive now, and the number of all.

    Raises:
        ConfigError: the model passes none of them.
    """
    evaluation.calibrate(behavior, model)
    margins = evaluation.evaluate(behavior, model).margins
    passing = [index for index, margin in enumerate(margins) if margin > 0]
    if not passing:
        raise ConfigError(
            f"behavior {behavior.name!r}: the model passes none of its probes before training, "
            "so there is nothing to lose; leave this behavior out, or, if it is one of response "
            "prefixes, give those with which this model answers"
        )
    return passing, len(margins)
