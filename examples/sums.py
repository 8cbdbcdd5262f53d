"""Sums of reasoning-gym: problems for `riprap fastslow examples/sums.yaml`, and their reward.

`pip install reasoning-gym`, then `python examples/sums.py > runs/sums.jsonl` writes the problems.
"""

from __future__ import annotations

import json
import re

import reasoning_gym

NAME = "chain_sum"
LEVEL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def score(completions: list[list[dict[str, str]]], answer: list[str], **_: object) -> list[float]:
    """Return reasoning-gym's own score of the last number of each completion: 1 if it is right."""
    judge = reasoning_gym.get_score_answer_fn(NAME)
    found = [re.findall(r"-?\d+", turns[0]["content"]) for turns in completions]
    pairs = zip(found, answer, strict=True)
    return [judge(own[-1], {"answer": right}) if own else 0.0 for own, right in pairs]


def main() -> None:
    """Print problems as JSON lines."""
    for entry in reasoning_gym.create_dataset(NAME, size=200, seed=0, **LEVEL):
        print(json.dumps({"question": entry["question"], "answer": entry["answer"]}))


if __name__ == "__main__":
    main()
