"""Write sums of reasoning-gym as problems for `riprap fastslow examples/sums.yaml`.

`pip install reasoning-gym`, then `python examples/sums.py` writes `runs/sums.jsonl`.
"""

from __future__ import annotations

import json
from pathlib import Path

import reasoning_gym

LEVEL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def main() -> None:
    """Write 200 problems with their answers."""
    file = Path("runs/sums.jsonl")
    file.parent.mkdir(exist_ok=True)
    rows = reasoning_gym.create_dataset("chain_sum", size=200, seed=0, **LEVEL)
    lines = [json.dumps({key: row[key] for key in ("question", "answer")}) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
