"""Tables of the core claim: how well ⟨h_b, Δθ⟩ predicts the change of the mean margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import numpy as np

from experiments.harness.interference_claim import agreement
from experiments.harness.markdown import count_of_total, median_range, number
from experiments.toy.analysis import FRESH, Comparison, Run, cells, comparisons, pooled
from experiments.toy.plan import NULL

VISIBLE = 0.05  # realized change whose sign matters, in logits
USEFUL = 0.5  # correlation below which a stale gradient does not count as useful
BINS = (0.0, 0.01, 0.05, 0.2, 0.5, np.inf)  # of the realized change, in logits


def claim_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return the rows of predicted (fresh h_b) against realized change."""
    rows: list[dict[str, object]] = []
    for (condition, name), group in cells(runs).items():
        compared = [comparisons(run)[name] for run in group]
        each = [agreement(one.predicted[FRESH], one.realized) for one in compared]
        right, visible = np.sum([_signs(one) for one in compared], axis=0)
        rows.append(
            {
                "condition": condition,
                "behavior": name,
                "seeds": len(compared),
                "correlation": median_range([one["correlation"] for one in each], 2, "mean"),
                "slope": median_range([one["slope"] for one in each], 2, "mean"),
                f"sign right where the change exceeds {VISIBLE}": count_of_total(
                    int(right), int(visible)
                ),
            }
        )
    return rows


def _signs(one: Comparison) -> tuple[int, int]:
    """Count the steps with the right sign, and those with a visible change."""
    is_visible = np.abs(one.realized) > VISIBLE
    right = np.sign(one.predicted[FRESH]) == np.sign(one.realized)
    return int((right & is_visible).sum()), int(is_visible.sum())


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


def _binned(one: Comparison) -> list[dict[str, object]]:
    size = np.abs(one.realized)
    missed = np.abs(one.predicted[FRESH] - one.realized)
    rows: list[dict[str, object]] = []
    for low, high in pairwise(BINS):
        inside = (size >= low) & (size < high)
        if inside.any():
            rows.append(
                {
                    "realized change": f"{low:g} to {high:g}" if high < np.inf else f"≥ {low:g}",
                    "steps": int(inside.sum()),
                    "median residual": number(np.median(missed[inside]), 3),
                    "90 % of residuals below": number(np.quantile(missed[inside], 0.9), 3),
                    "median residual ÷ change": number(
                        np.median(missed[inside] / np.maximum(size[inside], 1e-9)), 2
                    ),
                }
            )
    return rows


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
        texts = {
            f"age {one.age}": f"{number(one.correlation, 2)} ({number(one.fresh, 2)})"
            for one in own
        }
        oldest = {f"oldest with ≥ {USEFUL}": _oldest(own)}
        rows.append({"condition": condition, "behavior": name, **texts, **oldest})
    return rows


def _oldest(rows: Sequence[StaleAgreement]) -> str:
    useful = list(takewhile(lambda one: one.correlation >= USEFUL, rows))
    return str(useful[-1].age) if useful else "none"
