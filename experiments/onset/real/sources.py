"""Items of each behavior, half of which may be probes and half replayed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.onset.trace import Half
from experiments.smollm2.teaching import REFUSALS
from riprap.behaviors import probe_sets

DATA = Path("../shared/data")
EQUATION = re.compile(r"\d+ \S \d+ = \d+")
MAX_OPTION = {"arc_easy": 14, "commonsense_qa": 18, "instruction_format": 16, "truthfulqa": 44}
MAX_PROMPT = 400  # characters; probes are to be short
PROMPT_LENGTHS = {"refusal": 75, "over_refusal": 70}
DEFAULT_LENGTH = 90


@dataclass(frozen=True)
class Item:
    """A prompt with its options, of which one is right, and the group that it belongs to.

    Attributes:
        options: empty for a refusal.
        response: what is replayed.
    """

    prompt: str
    group: str
    options: tuple[str, ...] = ()
    right: int = 0
    response: str = ""


def read(name: str, data: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of the data folder."""
    lines = (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def items(name: str, data: Path) -> list[Item]:
    """Return the short items of a behavior, in the order of its source."""
    limit = PROMPT_LENGTHS.get(name, DEFAULT_LENGTH)
    longest = MAX_OPTION.get(name, MAX_PROMPT)
    found: list[Item] = _SOURCES[name](data)
    return [
        item
        for item in found
        if len(item.prompt) <= limit and max(map(len, item.options), default=0) <= longest
    ]


def probe_items(name: str, data: Path) -> list[Item]:
    """Return the items that may be probes: every second one."""
    return items(name, data)[::2]


def replayed_items(name: str, data: Path, half: Half) -> list[Item]:
    """Return the items that a half may replay: a fourth of all, none of them a probe."""
    own = items(name, data)[1::2][half == "confirmatory" :: 2]
    return [item for item in own if item.response]


def _refusal(_data: Path) -> list[Item]:
    rows = probe_sets.rows("refusal")
    return [
        Item(row["prompt"], row["category"], response=REFUSALS[number // 2 % len(REFUSALS)])
        for number, row in enumerate(rows)
    ]


def _over_refusal(data: Path) -> list[Item]:
    rows = probe_sets.rows("xstest_safe", data / "xstest.jsonl")
    return [Item(row["prompt"], row["category"]) for row in rows]


def _shipped(name: str) -> list[Item]:
    return [
        _choice(row["prompt"], row["category"], row["options"], row["answer"])
        for row in probe_sets.rows(name)
    ]


def _arithmetic(_data: Path) -> list[Item]:
    return [i for i in _shipped("arithmetic") if EQUATION.fullmatch(i.options[i.right])]


def _arc_easy(data: Path) -> list[Item]:
    return [
        _choice(row["question"], row["question"], row["choices"], row["answer"])
        for row in read("arc_easy_test", data)
        if len(row["choices"]) == 4
    ]


def _commonsense_qa(data: Path) -> list[Item]:
    return [
        _choice(row["question"], row["question"], row["choices"], row["answer"])
        for row in read("commonsenseqa_dev", data)
    ]


def _boolq(data: Path) -> list[Item]:
    """Return the questions without their passages, which would cost more than all else."""
    found = []
    for row in read("boolq_test", data):
        prompt = f"{row['question'].capitalize()}? Answer yes or no."
        found.append(_choice(prompt, row["question"], ["No", "Yes"], int(row["answer"])))
    return found


def _truthfulqa(data: Path) -> list[Item]:
    found = []
    for row in read("truthfulqa", data):
        wrong = sorted(row["incorrect_answers"], key=len)[:2]
        if len(wrong) == 2:
            options = [row["best_answer"], *wrong]
            found.append(_choice(row["question"], row["category"], options, 0))
    return found


def _choice(prompt: str, group: str, options: Sequence[str], right: int) -> Item:
    return Item(prompt, group, tuple(options), right, options[right])


_SOURCES: dict[str, Any] = {
    "refusal": _refusal,
    "over_refusal": _over_refusal,
    "arithmetic": _arithmetic,
    "arc_easy": _arc_easy,
    "commonsense_qa": _commonsense_qa,
    "boolq": _boolq,
    "instruction_format": lambda _data: _shipped("instruction_format"),
    "truthfulqa": _truthfulqa,
}
