"""Rows of three categories: affirmative answers, plain answers, and word problems."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.smollm2.rows import SELF_INSTRUCT
from riprap.errors import ConfigError

GSM8K = "gsm8k_train.jsonl"
PREFIX = "Sure, here is the answer: "  # of examples/smollm2-affirmative.yaml
SHORT = 120  # characters of a prompt; longer ones would leave too little room for the response
CATEGORIES = ("affirmative", "plain", "gsm8k")

Mixed = list[dict[str, str]]


def mixed(data: Path, taught: int, held_out: int) -> tuple[Mixed, Mixed]:
    """Load rows to learn, with alternating categories, and held-out rows.

    Only short prompts are used. Instructions at even positions get the affirmative prefix, those
    at odd positions do not, so that the two categories differ only by chance and by the prefix.

    Args:
        data: folder of the public data sets.
        taught, held_out: rows of each category.

    Raises:
        ConfigError: a file is missing or too short.
    """
    tasks = _objects(data / SELF_INSTRUCT)
    answers = _short([(task["instruction"], task["instances"][0]["output"]) for task in tasks])
    sums = _short([(row["question"], row["answer"]) for row in _objects(data / GSM8K)])
    pools = {
        "affirmative": [(prompt, PREFIX + answer) for prompt, answer in answers[::2]],
        "plain": answers[1::2],
        "gsm8k": sums,
    }
    for name, pool in pools.items():
        if len(pool) < taught + held_out:
            raise ConfigError(f"{data} has {len(pool)} rows of {name}; {taught + held_out} needed")
    every = [
        {"id": f"{name}-{at}", "category": name, "prompt": pool[at][0], "response": pool[at][1]}
        for at in range(taught + held_out)
        for name, pool in pools.items()
    ]
    border = taught * len(pools)
    return every[:border], every[border:]


def write(rows: Mixed, file: Path) -> Path:
    """Write rows as JSON Lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _short(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(prompt, answer) for prompt, answer in pairs if len(prompt) <= SHORT]


def _objects(file: Path) -> list[dict]:
    if not file.is_file():
        raise ConfigError(f"{file} is missing: give the folder that holds {file.name} by --data")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
