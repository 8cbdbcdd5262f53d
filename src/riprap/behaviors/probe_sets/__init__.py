"""Packs: probes written for this project, one JSONL file each, with a datasheet beside it.

A file of one's own with such rows serves wherever a pack does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from riprap.behaviors._behavior import Behavior
from riprap.behaviors._tokenization import encode_continuations, encode_prompts
from riprap.behaviors.probe_sets import _custom as own
from riprap.errors import BehaviorError

# What refusals of instruct models commonly begin with. A model of another habit: give its own, or
# `openers=None` to `Behavior.opening`, which learns them from the model.
OPENERS = ("I'm sorry", "Sorry", "I cannot", "I can't", "Unfortunately", "As an AI", "I am unable")
CONTRASTS = {"refusal": "over_refusal", "over_refusal": "refusal"}


def names() -> list[str]:
    """The packs there are."""
    files = resources.files(__name__).iterdir()
    return sorted(title(file.name) for file in files if is_file(file.name))


def is_file(name: str) -> bool:
    """Whether it names a file of one's own, and no pack."""
    return name.endswith(own.SUFFIX)


def title(name: str) -> str:
    """What the behaviour of a pack or file is called: a file's name without folder and suffix."""
    return Path(name).stem if is_file(name) else name


def opens(row: dict[str, Any]) -> bool:
    """Whether a row is judged by how the response opens, and not by a right answer."""
    return own.kind_of(row) == own.OPENING


def chooses(row: dict[str, Any]) -> bool:
    """Whether a row is judged by a choice among its options."""
    return own.kind_of(row) == own.CHOICE


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a pack, or of a file of one's own.

    Raises:
        BehaviorError: no pack by that name, or a file that does not hold rows of one kind.
    """
    if is_file(name):
        return own.read(name)
    if name not in names():
        raise BehaviorError(
            f"no pack {name!r}; there are {', '.join(names())}, or a {own.SUFFIX} file"
        )
    text = (resources.files(__name__) / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def load(
    name: str,
    tokenizer: Any,
    n: int | None = None,
    openers: Sequence[str | int] = OPENERS,
    **options: Any,
) -> Behavior:
    """A pack, or a file of one's own, as a behaviour.

    Args:
        name: refusal, over_refusal, arithmetic, general_knowledge or instruction_format; or a
            JSONL file of rows with prompt, options and answer (the right one's index): a choice;
            with prompt and completion: the first token of the completion; or with a prompt alone:
            how the response opens.
        n: how many probes, spread evenly over the pack (whose rows go by category); None: all.
        openers: what the model's refusals begin with.
        options: floor and others of `Behavior`'s constructors.

    Raises:
        BehaviorError: as `rows`, or `n` is not between 1 and the number of rows.
    """
    chosen, called = spread(name, n), title(name)
    prompts = [row["prompt"] for row in chosen]
    if chooses(chosen[0]):
        answers = [row["answer"] for row in chosen]
        return Behavior.multiple_choice(
            called, tokenizer, prompts, [row["options"] for row in chosen], answers, **options
        )
    if not opens(chosen[0]):
        ids = encode_continuations(tokenizer, [row["completion"] for row in chosen])
        asked = encode_prompts(tokenizer, prompts)
        return Behavior.next_token(called, asked, [row[0] for row in ids], **options)
    options.setdefault("contrast", CONTRASTS.get(called))
    return Behavior.response_prefix(
        called, tokenizer, prompts, openers, avoid=called == "over_refusal", **options
    )


def spread(name: str, n: int | None = None) -> list[dict[str, Any]]:
    """`n` rows of a pack or file, evenly over its categories; None: all.

    Raises:
        BehaviorError: as `rows`, or `n` is not between 1 and the number of rows.
    """
    pack = rows(name)
    if n is None:
        return pack
    if not 1 <= n <= len(pack):
        raise BehaviorError(f"{name!r} has {len(pack)} probes, and {n} were asked for")
    return [pack[index * len(pack) // n] for index in range(n)]
