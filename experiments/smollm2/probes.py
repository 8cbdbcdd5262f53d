"""Probes of the model that was taught to refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from experiments.harness.cache import cached
from experiments.smollm2.rows import REFUSAL_PREFIX
from riprap import evaluation
from riprap.behaviors import Behavior, probe_sets


def load_refusals(name: str, tokenizer: Any) -> Behavior:
    """Load the probe set `refusal` or `over_refusal`, by the prefix of the taught refusals."""
    return probe_sets.load(name, tokenizer, prefixes=[REFUSAL_PREFIX])


@cached("smollm2/passing-{behavior.name}.json")
def passing(behavior: Behavior, model: nn.Module) -> list[int]:
    """Return the indices of the probes that the starting model passes."""
    margins = evaluation.evaluate(behavior, model).margins
    indices: list[int] = np.flatnonzero(margins > 0).tolist()
    return indices
