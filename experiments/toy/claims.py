"""Acceptance criteria of the experiment, each with its measurement."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.harness.markdown import median_range
from experiments.toy.plan import NULL

EARLY = (("A", "C"), ("A", "C_disjoint"), ("B", "C_context"))


def acceptance(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the criteria with their measurements and whether they are met.

    A lead in every seed is met only if every seed broke: without a break there is no lead.

    Args:
        frame: `detector_rows` of all runs.
    """
    own = frame[frame.detector == "forecast"]
    leads = [_lead(own, behavior, condition) for behavior, condition in EARLY]
    return [*leads, _quiet_null(own), _no_false_critical(own, "B", "C_disjoint")]


def _lead(frame: pd.DataFrame, behavior: str, condition: str) -> dict[str, Any]:
    rows = frame[(frame.behavior == behavior) & (frame.condition == condition)]
    broken = rows[rows.broke.notna()]
    before = broken.lead >= 1
    words = [
        f"lead {median_range(broken.lead.to_numpy(dtype=float))} steps",
        f"at least 1 in {int(before.sum())} of the {len(broken)} seeds that broke",
    ]
    if early := int(broken.false_alarm.sum()):
        words.append(f"in {early} of them earlier than the horizon, which counts as false")
    if len(broken) < len(rows):
        words.append(f"no break in {len(rows) - len(broken)} of {len(rows)} seeds")
    return {
        "criterion": f"{behavior}'s critical lead ≥ 1 under {condition} in every seed",
        "measured": "; ".join(words) if len(rows) else "no runs",
        "met": bool(len(rows) and len(broken) == len(rows) and before.all()),
    }


def _quiet_null(frame: pd.DataFrame) -> dict[str, Any]:
    rows = frame[frame.condition == NULL]
    runs = rows.seed.nunique()
    loud = rows[rows.warning.notna()].seed.nunique()
    return {
        "criterion": "null: no alert of level warning or above in any run",
        "measured": f"alerts in {loud} of {runs} runs",
        "met": bool(runs and not loud),
    }


def _no_false_critical(frame: pd.DataFrame, behavior: str, condition: str) -> dict[str, Any]:
    rows = frame[(frame.behavior == behavior) & (frame.condition == condition)]
    false = int(rows.false_alarm.sum())
    return {
        "criterion": f"{condition}: no false critical on {behavior}",
        "measured": f"false in {false} of {len(rows)} seeds",
        "met": bool(len(rows) and not false),
    }
