"""Tables of alerts, and of the overlap of A and B, as Markdown."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness.markdown import NOTHING, median_range, number
from experiments.toy.analysis import Run, series
from experiments.toy.plan import NULL
from riprap.types import Level

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


DETECTORS = ("forecast", "slope", "fixed thresholds", "trivial rule")
OVERLAP, CHANCE = "subspace_overlap:A|B", "subspace_overlap_chance"


def per_run(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Return the rows of the forecast detector: one row a condition, behavior and seed.

    Args:
        frame: `detector_rows` of all runs.
    """
    own = frame[frame.detector == "forecast"]
    for key in ("behavior", "condition"):  # in the order of the runs
        own = own.assign(**{key: pd.Categorical(own[key], own[key].unique(), ordered=True)})
    ordered = own.sort_values(["condition", "behavior", "seed"])
    return [_run_row(row) for row in ordered.to_dict("records")]


def _run_row(row: Mapping[Hashable, Any]) -> dict[str, object]:
    return {
        "condition": row["condition"],
        "behavior": row["behavior"],
        "seed": row["seed"],
        "break": number(row["broke"]),
        "break, held out": number(row["broke_held_out"]),
        **{f"first {level}": number(row[level]) for level in map(str, Level)},
        "lead": number(row["lead"]),
        "half-life": number(row["half_life"]),
        "final margin": number(row["final_margin"], 2),
        "false alarm": _false_alarm(row),
    }


def _false_alarm(row: Mapping[Hashable, Any]) -> str:
    if row["undecided"]:
        return "run ended too soon to tell"
    return "yes" if row["false_alarm"] else "no"


def by_detector(frame: pd.DataFrame) -> list[dict[str, object]]:
    """Return the rows of all detectors: one row a detector, condition and behavior.

    Args:
        frame: `detector_rows` of all runs.
    """
    groups = frame.groupby(["detector", "condition", "behavior"], sort=False)
    rows = [_detector_row(group) for _, group in groups]
    rows.sort(key=lambda row: DETECTORS.index(str(row["detector"])))
    return rows


def _detector_row(group: pd.DataFrame) -> dict[str, object]:
    detector, condition, behavior = (
        str(group[key].iloc[0]) for key in ("detector", "condition", "behavior")
    )
    broken = group[group.broke.notna()]
    before = int((broken.lead >= 1).sum())
    warned = int(group.warning.notna().sum())
    return {
        "detector": detector,
        "condition": condition,
        "behavior": behavior,
        "runs": len(group),
        "breaks": len(broken),
        "alerted before": before,
        "late or never": len(broken) - before,
        "lead, median [min, max]": median_range(broken.lead.to_numpy(dtype=float)),
        "false criticals": int(group.false_alarm.sum()),
        "undecided": int(group.undecided.sum()),
        "null runs with a warning or above": warned if condition == NULL else NOTHING,
    }


def overlap_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return the rows of the subspace overlap of A and B at the start and the end."""
    rows: list[dict[str, object]] = []
    for condition in dict.fromkeys(run.condition for run in runs):
        by_run = [series(run) for run in runs if run.condition == condition]
        overlaps = [one[OVERLAP] for one in by_run if OVERLAP in one]
        chance = [value for one in by_run for _, value in one.get(CHANCE, [])]
        starts, ends = (np.array([_mean_at(one, place) for one in overlaps]) for place in (0, -1))
        rows.append(
            {
                "condition": condition,
                "seeds": len(overlaps),
                "A and B at step 0": median_range(starts, 3),
                "at the end": median_range(ends, 3),
                "change": median_range(ends - starts, 3),
                "chance": median_range(chance, 3),
            }
        )
    return rows


def _mean_at(readings: list[tuple[int, float]], place: int) -> float:
    """Mean over layers at the first or last step that was recorded."""
    step = readings[place][0]
    return float(np.mean([value for at, value in readings if at == step]))
