"""Packs: probes written for this project, one JSONL file each, with a datasheet beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from riprap.behaviors.behavior import Behavior
from riprap.evidence import BehaviorError

# What refusals of instruct models commonly begin with. A model of another habit: give its own, or
# `openers=None` to `Behavior.opening`, which learns them from the model.
OPENERS = ("I'm sorry", "Sorry", "I cannot", "I can't", "Unfortunately", "As an AI", "I am unable")
CONTRASTS = {"refusal": "over_refusal", "over_refusal": "refusal"}


def names() -> list[str]:
    """The packs there are."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name[:-6] for file in files if file.name.endswith(".jsonl"))


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a pack.

    Raises:
        BehaviorError: no pack by that name.
    """
    if name not in names():
        raise BehaviorError(f"no pack {name!r}; there are {', '.join(names())}")
    text = (resources.files(__name__) / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def load(
    name: str,
    tokenizer: Any,
    n: int | None = None,
    openers: Sequence[str | int] = OPENERS,
    **options: Any,
) -> Behavior:
    """A pack as a behaviour.

    Args:
        name: refusal, over_refusal, arithmetic, general_knowledge or instruction_format.
        n: how many probes, spread evenly over the pack (whose rows go by category); None: all.
        openers: what the model's refusals begin with.
        options: floor and others of `Behavior`'s constructors.

    Raises:
        BehaviorError: no pack by that name, or `n` is not between 1 and its size.
    """
    chosen = spread(name, n)
    prompts = [row["prompt"] for row in chosen]
    if "options" in chosen[0]:
        answers = [row["answer"] for row in chosen]
        return Behavior.choice(
            name, tokenizer, prompts, [row["options"] for row in chosen], answers, **options
        )
    options.setdefault("contrast", CONTRASTS[name])
    return Behavior.opening(
        name, tokenizer, prompts, openers, avoid=name == "over_refusal", **options
    )


def spread(name: str, n: int | None = None) -> list[dict[str, Any]]:
    """`n` rows of a pack, evenly over its categories; None: all.

    Raises:
        BehaviorError: no pack by that name, or `n` is not between 1 and its size.
    """
    pack = rows(name)
    if n is None:
        return pack
    if not 1 <= n <= len(pack):
        raise BehaviorError(f"pack {name!r} has {len(pack)} probes, {n} were asked for")
    return [pack[index * len(pack) // n] for index in range(n)]
