"""Rows `selection` and `diagnose` of `run.py`, from the scripts that measure them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from suite import HERE, Asked, Row

AIMS = {"moderate (exact)": 1.00, "proxy": 0.65}  # of SmolLM2 with LoRA
MEMORY_AIM = 1.1
DIAGNOSED = HERE.parent / "results" / "diagnose_cost" / "smollm2.json"
SECONDS_AIM = 150.0


def selection_rows(asked: Asked) -> Iterator[Row]:
    """Yield the rows of the group `selection`: the cases "smollm2", "full" and "small".

    With `quick`, of the small model only.
    """
    import selection_cost

    for case in ("small", "smollm2", "full"):
        if not asked.wants(case) or (asked.quick and not asked.cases and case != "small"):
            continue
        asked.progress(f"selection, {case}")
        command = [case, "--rounds", "2" if asked.quick else "5", "--memory"]
        command += ["--data", str(asked.data), "--rows", "16", "--width", "96"]
        for found in selection_cost.measure(selection_cost.parse(command)):
            aims = AIMS if case == "smollm2" else {}
            aim, what = aims.get(found.method), f"{case}: {found.method}"
            if not found.ratios:
                asked.progress(f"{what}: {found.skipped}")
                continue
            steps = [user for user, _ in found.ratios]
            yield Row("selection", what, steps, None, aim, f"first step {found.first:.2f}")
            if not math.isnan(found.memory[1]):
                limit = MEMORY_AIM if found.method == "moderate (exact)" else None
                note = f"of the process; of tensors {found.memory[1]:.3f}"
                yield Row("selection", f"{what}: peak", [found.memory[0]], None, limit, note)


def diagnose_rows(asked: Asked) -> Iterator[Row]:
    """Yield the rows of the group `diagnose`, as `diagnose_cost.py smollm2` has stored them."""
    if not DIAGNOSED.exists():
        asked.progress("diagnose: no results; run benchmarks/diagnose_cost.py smollm2 PAIRS first")
        return
    stored = json.loads(DIAGNOSED.read_text(encoding="utf-8"))
    path = Path("results") / "diagnose_cost"
    for key, found in stored.items():
        note = f"stored in {path}, on the machine and day told there"
        what = f"riprap diagnose on {key} probes, s"
        yield Row("diagnose", what, [found["seconds"]], None, SECONDS_AIM, note)
