"""Behaviors that are compared on the real model, each decided by one token."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from experiments.smollm2.probes import load_refusals
from riprap import evaluation
from riprap.behaviors import Behavior, encode_continuations, encode_prompts, probe_sets

OPENINGS = ("refusal", "over_refusal")


def behavior_of(name: str, tokenizer: Any) -> Behavior:
    """Load a probe set as a behavior whose answer is one token, like the prefix of a refusal.

    For a question with options, the prompt contains the right option up to the token that
    distinguishes it from the last wrong option. The curvature of a loss over whole sentences
    would depend on their wording.
    """
    if name in OPENINGS:
        return load_refusals(name, tokenizer)
    rows, targets = [], []
    for row in probe_sets.rows(name):
        (prompt,) = encode_prompts(tokenizer, [row["prompt"]])
        options = encode_continuations(tokenizer, row["options"])
        right = options.pop(row["answer"])
        split = max(common_prefix(right, wrong) for wrong in options)
        if split < len(right):
            rows.append(prompt + right[:split])
            targets.append(right[split])
    return Behavior.next_token(name, rows, targets)


def common_prefix(one: list[int], two: list[int]) -> int:
    """Return the length of the common prefix."""
    agree = [a == b for a, b in zip(one, two, strict=False)]
    return agree.index(False) if False in agree else len(agree)


def passing(behavior: Behavior, model: nn.Module) -> list[int]:
    """Return the probes that the model passes, in a fixed random order."""
    passed = np.flatnonzero(evaluation.evaluate(behavior, model).margins > 0)
    return np.random.default_rng(0).permutation(passed).tolist()
