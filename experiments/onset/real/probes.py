"""Behaviors of the corpus: Riprap's own, on probes that the start passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from experiments.harness.cache import cached
from experiments.onset.real.sources import DATA, Item, probe_items
from experiments.smollm2.teaching import REFUSAL_PREFIX
from riprap import evaluation
from riprap.behaviors import Behavior, encode_continuations, encode_prompts
from riprap.errors import ConfigError

PROBES = 20  # so that the third failure breaks a behavior
ENOUGH = 12  # with fewer, a start cannot do it


@dataclass(frozen=True)
class Measured:
    """A behavior, and the number of the group of each of its probes."""

    behavior: Behavior
    groups: np.ndarray


def make_behavior(name: str, tokenizer: Any, chosen: Sequence[Item]) -> Behavior:
    """Make a behavior of items.

    Refusals are told by their prefix, arithmetic by the last digit of the right equation, all
    others by a choice.
    """
    prompts = [item.prompt for item in chosen]
    if name in ("refusal", "over_refusal"):
        return Behavior.response_prefix(
            name, tokenizer, prompts, [REFUSAL_PREFIX], avoid=name == "over_refusal"
        )
    if name == "arithmetic":
        answers = encode_continuations(tokenizer, [item.options[item.right] for item in chosen])
        rows = encode_prompts(tokenizer, prompts)
        given = [row + answer[:-1] for row, answer in zip(rows, answers, strict=True)]
        return Behavior.next_token(name, given, [answer[-1] for answer in answers])
    options = [item.options for item in chosen]
    right = [item.right for item in chosen]
    return Behavior.multiple_choice(name, tokenizer, prompts=prompts, options=options, right=right)


@cached("onset/real/passing-{start}-{name}.json")
def passing(start: str, name: str, model: nn.Module, tokenizer: Any, data: Path) -> list[int]:
    """Return the indices of the probe items that the start passes."""
    behavior = make_behavior(name, tokenizer, probe_items(name, data))
    indices: list[int] = np.flatnonzero(evaluation.evaluate(behavior, model).margins > 0).tolist()
    return indices


def measure(
    start: str, names: Sequence[str], model: nn.Module, tokenizer: Any, data: Path = DATA
) -> list[Measured]:
    """Return the behaviors on at most `PROBES` probes that the start passes, evenly spaced.

    Raises:
        ConfigError: the start passes fewer than `ENOUGH`.
    """
    result = []
    for name in names:
        indices = passing(start, name, model, tokenizer, data)
        if len(indices) < ENOUGH:
            raise ConfigError(
                f"behavior {name!r}: {start} SmolLM2 passes {len(indices)} probes; "
                f"leave it out, since fewer than {ENOUGH} say little"
            )
        n = min(PROBES, len(indices))
        candidates = probe_items(name, data)
        chosen = [candidates[indices[place * len(indices) // n]] for place in range(n)]
        result.append(Measured(make_behavior(name, tokenizer, chosen), number_groups(chosen)))
    return result


def number_groups(chosen: Sequence[Item]) -> np.ndarray:
    """Return the number of each item's group, counted from 0 in the order of the items."""
    order = list(dict.fromkeys(item.group for item in chosen))
    return np.array([order.index(item.group) for item in chosen])
