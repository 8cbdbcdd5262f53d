"""Tables of the core claim: how well ⟨h_b, Δθ⟩ said how the mean margin would change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import numpy as np

from experiments.harness import markdown
from experiments.harness.interference_claim import agreement
from experiments.harness.markdown import number, share, spread
from experiments.toy.analysis import Run
from experiments.toy.plan import NULL
from experiments.toy.traces import FRESH, Comparison, cells, comparisons, pooled

VISIBLE = 0.05  # realised change whose sign matters, in logits
USEFUL = 0.5  # correlation below which a stale gradient is no longer called useful
BINS = (0.0, 0.01, 0.05, 0.2, 0.5, np.inf)  # of the realised change, in logits


def claim_table(runs: Sequence[Run]) -> str:
    """Predicted (fresh h_b) against realised change, by condition and behaviour."""
    rows = []
    for (condition, name), group in cells(runs).items():
        found = [comparisons(run)[name] for run in group]
        each = [agreement(one.predicted[FRESH], one.realised) for one in found]
        right, seen = np.sum([_signs(one) for one in found], axis=0)
        rows.append(
            {
                "condition": condition,
                "behaviour": name,
                "seeds": len(found),
                "correlation": spread([one["correlation"] for one in each], 2, "mean"),
                "slope": spread([one["slope"] for one in each], 2, "mean"),
                f"sign right where the change exceeds {VISIBLE}": share(int(right), int(seen)),
            }
        )
    note = (
        "\n\nMean [min, max] over seeds, step by step over the first steps of each run. "
        "Slope: realised on predicted, through 0.\n\nWhere it fails, by size of the step:\n\n"
    )
    return markdown.table(rows) + note + residual_table(runs)


def _signs(one: Comparison) -> tuple[int, int]:
    """Steps with the sign right, among those with a visible change."""
    visible = np.abs(one.realised) > VISIBLE
    right = np.sign(one.predicted[FRESH]) == np.sign(one.realised)
    return int((right & visible).sum()), int(visible.sum())


def residual_table(runs: Sequence[Run]) -> str:
    """|predicted − realised| by size of the realised change, seeds and new tasks pooled."""
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.tracks):
        for condition in ("null", "new tasks"):
            chosen = [run for run in runs if (run.condition == NULL) == (condition == "null")]
            if chosen:
                one = pooled(comparisons(run)[name] for run in chosen)
                rows += [{"behaviour": name, "runs": condition} | row for row in _binned(one)]
    return markdown.table(rows)


def _binned(one: Comparison) -> list[dict[str, object]]:
    size = np.abs(one.realised)
    missed = np.abs(one.predicted[FRESH] - one.realised)
    rows: list[dict[str, object]] = []
    for low, high in pairwise(BINS):
        inside = (size >= low) & (size < high)
        if inside.any():
            rows.append(
                {
                    "realised change": f"{low:g} to {high:g}" if high < np.inf else f"≥ {low:g}",
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
class Aged:
    """How well gradients of one age predicted, seeds pooled.

    Attributes:
        age: in steps; 0 is fresh.
        correlation: of predicted with realised change.
        fresh: that of fresh gradients on the same steps: an old gradient has to exist first, and
            later steps are calmer.
    """

    condition: str
    behavior: str
    age: int
    correlation: float
    fresh: float


def staleness(runs: Sequence[Run]) -> list[Aged]:
    """By condition, behaviour and age of h_b, in this order."""
    rows = []
    for (condition, name), group in cells(runs).items():
        one = pooled(comparisons(run)[name] for run in group)
        for age, predicted in zip((FRESH, *ages(group)), one.predicted, strict=True):
            known = np.isfinite(predicted)
            aged = agreement(predicted, one.realised)["correlation"]
            fresh = agreement(one.predicted[FRESH][known], one.realised[known])["correlation"]
            rows.append(Aged(condition, name, age, aged, fresh))
    return rows


def ages(runs: Sequence[Run]) -> list[int]:
    """The ages that were compared: a gradient of age k cannot be there in the first k steps."""
    one = next(iter(comparisons(runs[0]).values()))
    return [int(np.isnan(predicted).sum()) for predicted in one.predicted[1:]]


def staleness_table(runs: Sequence[Run]) -> str:
    """Correlation by age of h_b, and the oldest age at which it still said something."""
    found = staleness(runs)
    rows = []
    for condition, name in cells(runs):
        own = [one for one in found if (one.condition, one.behavior) == (condition, name)]
        texts = {
            f"age {one.age}": f"{number(one.correlation, 2)} ({number(one.fresh, 2)})"
            for one in own
        }
        oldest = {f"oldest with ≥ {USEFUL}": _oldest(own)}
        rows.append({"condition": condition, "behaviour": name} | texts | oldest)
    note = (
        "\n\nCorrelation of predicted with realised change, seeds pooled; in brackets that of a "
        "fresh gradient on the same steps. Oldest: no younger age is below the bound."
    )
    return markdown.table(rows) + note


def _oldest(rows: Sequence[Aged]) -> str:
    useful = list(takewhile(lambda one: one.correlation >= USEFUL, rows))
    return str(useful[-1].age) if useful else "none"
