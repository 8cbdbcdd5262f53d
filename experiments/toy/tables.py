"""Tables of alerts, and of the overlap of A and B, as Markdown."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import pandas as pd

from experiments.harness.interference_claim import agreement
from experiments.harness.markdown import NOTHING, count_of_total, median_range, number
from experiments.toy.analysis import FRESH, Comparison, Run, cells, comparisons, pooled, series
from experiments.toy.plan import NULL
from riprap.types import Level

VISIBLE = 0.05  # realized change whose sign matters, in logits
USEFUL = 0.5  # correlation below which a stale gradient does not count as useful
BINS = (0.0, 0.01, 0.05, 0.2, 0.5, np.inf)  # of the realized change, in logits


def claim_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return the rows of predicted (fresh h_b) against realized change."""
    rows: list[dict[str, object]] = []
    for (condition, name), group in cells(runs).items():
        compared = [comparisons(run)[name] for run in group]
        each = [agreement(one.predicted[FRESH], one.realized) for one in compared]
        steps = pooled(compared)
        is_visible = np.abs(steps.realized) > VISIBLE
        is_right = np.sign(steps.predicted[FRESH]) == np.sign(steps.realized)
        signs = count_of_total(int((is_right & is_visible).sum()), int(is_visible.sum()))
        rows.append(
            {
                "condition": condition,
                "behavior": name,
                "seeds": len(compared),
                "correlation": median_range([one["correlation"] for one in each], 2, "mean"),
                "slope": median_range([one["slope"] for one in each], 2, "mean"),
                f"sign right where the change exceeds {VISIBLE}": signs,
            }
        )
    return rows


def residual_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return the rows of |predicted − realized| by size of the realized change, pooled."""
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(name for run in runs for name in run.histories):
        for condition in ("null", "new tasks"):
            chosen = [run for run in runs if (run.condition == NULL) == (condition == "null")]
            if chosen:
                one = pooled(comparisons(run)[name] for run in chosen)
                rows += [{"behavior": name, "runs": condition} | row for row in _binned(one)]
    return rows


def _binned(one: Comparison) -> Iterator[dict[str, object]]:
    size = np.abs(one.realized)
    missed = np.abs(one.predicted[FRESH] - one.realized)
    relative = missed / np.maximum(size, 1e-9)
    for low, high in pairwise(BINS):
        inside = (size >= low) & (size < high)
        if inside.any():
            yield {
                "realized change": f"{low:g} to {high:g}" if high < np.inf else f"≥ {low:g}",
                "steps": int(inside.sum()),
                "median residual": number(np.median(missed[inside]), 3),
                "90 % of residuals below": number(np.quantile(missed[inside], 0.9), 3),
                "median residual ÷ change": number(np.median(relative[inside]), 2),
            }


@dataclass(frozen=True)
class StaleAgreement:
    """Agreement of predictions from gradients of one age, seeds pooled.

    Attributes:
        age: in steps; 0 is fresh.
        correlation: of predicted with realized change.
        fresh: that of fresh gradients on the same steps, since stale gradients exist only in
            later, calmer steps.
    """

    condition: str
    behavior: str
    age: int
    correlation: float
    fresh: float


def staleness(runs: Sequence[Run]) -> list[StaleAgreement]:
    """Return the agreement by condition, behavior and age of h_b, in this order."""
    rows = []
    for (condition, name), group in cells(runs).items():
        one = pooled(comparisons(run)[name] for run in group)
        for age, predicted in zip((FRESH, *ages(group)), one.predicted, strict=True):
            finite = np.isfinite(predicted)
            aged = agreement(predicted, one.realized)["correlation"]
            fresh = agreement(one.predicted[FRESH][finite], one.realized[finite])["correlation"]
            rows.append(StaleAgreement(condition, name, age, aged, fresh))
    return rows


def ages(runs: Sequence[Run]) -> list[int]:
    """Return the ages compared: a gradient of age k is missing in the first k steps."""
    one = next(iter(comparisons(runs[0]).values()))
    return [int(np.isnan(predicted).sum()) for predicted in one.predicted[1:]]


def staleness_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return the rows of correlations by age of h_b, with the oldest useful age."""
    ages_compared = staleness(runs)
    rows: list[dict[str, object]] = []
    for condition, name in cells(runs):
        own = [one for one in ages_compared if (one.condition, one.behavior) == (condition, name)]
        useful = list(takewhile(lambda one: one.correlation >= USEFUL, own))
        row: dict[str, object] = {"condition": condition, "behavior": name}
        for one in own:
            row[f"age {one.age}"] = f"{number(one.correlation, 2)} ({number(one.fresh, 2)})"
        rows.append(row | {f"oldest with ≥ {USEFUL}": str(useful[-1].age) if useful else "none"})
    return rows


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
    false = "yes" if row["false_alarm"] else "no"
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
        "false alarm": "run ended too soon to tell" if row["undecided"] else false,
    }


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
    keys = ("detector", "condition", "behavior")
    broken = group[group.broke.notna()]
    before = int((broken.lead >= 1).sum())
    warned = int(group.warning.notna().sum())
    return {
        **{key: str(group[key].iloc[0]) for key in keys},
        "runs": len(group),
        "breaks": len(broken),
        "alerted before": before,
        "late or never": len(broken) - before,
        "lead, median [min, max]": median_range(broken.lead.to_numpy(dtype=float)),
        "false criticals": int(group.false_alarm.sum()),
        "undecided": int(group.undecided.sum()),
        "null runs with a warning or above": warned if (group.condition == NULL).all() else NOTHING,
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
    """Return the mean over layers at the first or last step that was recorded."""
    step = readings[place][0]
    return float(np.mean([value for at, value in readings if at == step]))
