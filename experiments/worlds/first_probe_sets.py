"""The shipped probe sets with the rows that they had when the experiments ran.

The sets have grown since. New rows stand behind the first ones, so a shorter set is their
beginning, and the results stay those of the same probes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from riprap.behaviors import Behavior, probe_sets

SIZES = {
    "refusal": 120,
    "over_refusal": 120,
    "arithmetic": 72,
    "general_knowledge": 72,
    "instruction_format": 78,
}


def rows(name: str) -> list[dict[str, Any]]:
    """Return the first rows of a probe set."""
    return probe_sets.rows(name)[: SIZES[name]]


def evenly_spaced_indices(name: str, n: int | None = None) -> list[int]:
    """Return the indices of `n` evenly spaced rows among the first ones; None: of all of them."""
    size = SIZES[name]
    return [index * size // (n or size) for index in range(n or size)]


def evenly_spaced(name: str, n: int | None = None) -> list[dict[str, Any]]:
    """Return `n` evenly spaced rows among the first ones; None: all of them."""
    every = rows(name)
    return [every[index] for index in evenly_spaced_indices(name, n)]


def load(name: str, tokenizer: Any, n: int | None = None, **options: Any) -> Behavior:
    """Load a probe set as a behavior, with `n` evenly spaced rows among the first ones."""
    whole = probe_sets.load(name, tokenizer, **options)
    return whole.subset(evenly_spaced_indices(name, n))


def write(name: str, folder: Path) -> Path:
    """Write the first rows as a file of the probe set's name, for a configuration."""
    file = folder / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows(name)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
