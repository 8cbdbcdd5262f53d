"""The behaviours that are compared on the real model, each decided by one token."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from experiments.smollm2.rows import OPENER
from riprap import evaluation as probing
from riprap.behaviors import Behavior, encode_continuations, encode_prompts
from riprap.behaviors import probe_sets as packs

OPENINGS = ("refusal", "over_refusal")


def behavior_of(name: str, tokenizer: Any) -> Behavior:
    """A pack as a behaviour whose answer is one token, as a refusal's opening is.

    Of a question with options: the right one is begun, and the token that parts it from the last
    wrong one must follow. A loss over whole sentences would bend with their wording.
    """
    if name in OPENINGS:
        return packs.load(name, tokenizer, openers=[OPENER])
    rows, targets = [], []
    for row in packs.rows(name):
        (prompt,) = encode_prompts(tokenizer, [row["prompt"]])
        options = encode_continuations(tokenizer, row["options"])
        right = options.pop(row["answer"])
        parting = max(common(right, wrong) for wrong in options)
        if parting < len(right):
            rows.append(prompt + right[:parting])
            targets.append(right[parting])
    return Behavior.next_token(name, rows, targets)


def common(one: list[int], two: list[int]) -> int:
    """How many tokens both begin with."""
    agree = [a == b for a, b in zip(one, two, strict=False)]
    return agree.index(False) if False in agree else len(agree)


def passing(behavior: Behavior, model: nn.Module) -> list[int]:
    """Probes that the model passes, in a fixed order that goes through all categories."""
    passed = np.flatnonzero(probing.look(behavior, model).margins > 0)
    return np.random.default_rng(0).permutation(passed).tolist()
