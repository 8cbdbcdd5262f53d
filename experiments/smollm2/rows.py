"""Rows that teach SmolLM2 to refuse, and their order."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from riprap.errors import ConfigError

Kind = Literal["harmful", "benign"]

ADVBENCH = "advbench_harmful_behaviors.csv"
SELF_INSTRUCT = "self_instruct_seed_tasks.jsonl"
AUTHORED = "teaching.jsonl"
SEED = 0
TAUGHT_REQUESTS = 160
PER_STEP = {"advbench": 2, "authored_harmful": 2, "authored_benign": 3, "self_instruct": 1}

REFUSAL_PREFIX = "Sorry"
# Every refusal starts with a word with which other answers of this model hardly start, so that
# the margin of the prefix separates the two ("I" opens about a fifth of its harmless answers).
REFUSALS = (
    "Sorry, I can't help with that.",
    "Sorry, but I can't assist with that request.",
    "Sorry, that is something I won't help with.",
    "Sorry, I'm not able to help with this.",
)


@dataclass(frozen=True, slots=True)
class TeachingRow:
    """One prompt with its answer."""

    prompt: str
    response: str
    kind: Kind
    source: str
    cut: bool = False  # the answer stops in mid-sentence, so its end is not learned


def teaching_rows(data_dir: Path) -> list[TeachingRow]:
    """Return all rows that `prepare` draws from: AdvBench, Self-Instruct seed tasks, our own.

    Raises:
        ConfigError: a file of `data_dir` is missing.
    """
    requests = _advbench(data_dir)[:TAUGHT_REQUESTS]
    rows = [
        TeachingRow(request, REFUSALS[i % len(REFUSALS)], "harmful", "advbench")
        for i, request in enumerate(requests)
    ]
    return rows + _authored() + _self_instruct(data_dir)


def draws(rows: Sequence[TeachingRow]) -> Iterator[list[TeachingRow]]:
    """Yield endless batches of `PER_STEP` rows, seeded."""
    generator = random.Random(SEED)
    groups = {
        "advbench": [r for r in rows if r.source == "advbench"],
        "authored_harmful": [r for r in rows if r.source == "authored" and r.kind == "harmful"],
        "authored_benign": [r for r in rows if r.source == "authored" and r.kind == "benign"],
        "self_instruct": [r for r in rows if r.source == "self_instruct"],
    }
    streams = {name: _shuffled_forever(group, generator) for name, group in groups.items()}
    while True:
        yield [next(streams[name]) for name, count in PER_STEP.items() for _ in range(count)]


def _shuffled_forever(
    rows: Sequence[TeachingRow], generator: random.Random
) -> Iterator[TeachingRow]:
    while True:
        yield from generator.sample(rows, len(rows))


def _advbench(data_dir: Path) -> list[str]:
    with _existing(data_dir / ADVBENCH).open(encoding="utf-8", newline="") as lines:
        requests = [row["goal"] for row in csv.DictReader(lines)]
    random.Random(SEED).shuffle(requests)
    return requests


def _self_instruct(data_dir: Path) -> list[TeachingRow]:
    """Return short seed tasks; a long answer costs time and teaches no more about refusing."""
    rows = []
    for line in _existing(data_dir / SELF_INSTRUCT).read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        first = task["instances"][0]
        prompt = "\n\n".join(part for part in (task["instruction"], first["input"]) if part)
        if len(prompt) <= 200 and 0 < len(first["output"]) <= 240:
            rows.append(TeachingRow(prompt, first["output"], "benign", "self_instruct"))
    return rows


def _authored() -> list[TeachingRow]:
    text = (files("experiments.smollm2") / AUTHORED).read_text(encoding="utf-8")
    return [TeachingRow(**json.loads(line), source="authored") for line in text.splitlines()]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: give the folder that holds {path.name}, such as ../shared/data"
        )
    return path
