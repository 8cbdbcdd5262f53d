"""Tables of false alarms, delays and leads, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.detectors.bootstrap import EDGE, LEVELED, RECORDED, Outcome, on_margins
from experiments.detectors.detector_paths import (
    Proportion,
    area,
    bound_of,
    delays,
    first_above,
    name_of,
    tuned_bound,
)
from experiments.detectors.plan import NULL, Plan
from experiments.detectors.resample import SHAPES, PlantedDecline, calm_schedule
from experiments.detectors.simulate import Run
from experiments.harness import markdown
from experiments.harness.markdown import NOTHING, count_of_total, median_range, number
from experiments.harness.preregistration import Preregistration
from riprap.detectors import BettingTest, Detector, ForecastDetector, Threshold
from riprap.types import Level

ALPHA = 0.05
Row = dict[str, Any]


def bootstrap_rows(outcomes: Sequence[Outcome], preregistration: Preregistration) -> list[Row]:
    """Return one row a detector: false alarms, delays at own and tuned bounds, and area."""
    plan = Plan.of(preregistration)
    steps = calm_schedule(plan)
    rows = []
    for detector, outcome in zip(on_margins(preregistration), outcomes, strict=True):
        bound, paths = bound_of(detector), list(np.concatenate(list(outcome.paths.values())))
        row: Row = {"detector": name_of(detector)}
        for kind in (RECORDED, LEVELED, EDGE):
            maxima = outcome.maxima.get(kind)
            row[kind] = None if maxima is None else proportion_of(list(maxima > bound))
        row["delay"] = float(delays(paths, steps, bound, plan.onset).mean())
        alarms = [first_above(path, steps, bound, plan.onset) for path in paths]
        row["found"] = proportion_of([alarm is not None for alarm in alarms])
        for kind in (RECORDED, LEVELED):
            tuned = tuned_bound(outcome.maxima[kind], ALPHA)
            row[f"delay tuned {kind}"] = float(delays(paths, steps, tuned, plan.onset).mean())
        row["area"] = area(outcome.maxima[LEVELED], paths, steps, plan.onset)
        row["lead"] = _leads(outcome, steps, bound, plan.onset)
        rows.append(row)
    return rows


def proportion_of(hits: Sequence[bool]) -> Proportion:
    """Return the proportion of true entries."""
    return Proportion(sum(map(bool, hits)), len(hits))


def _leads(outcome: Outcome, steps: list[int], bound: float, onset: int) -> list[float]:
    """Return break minus alarm on the planted declines that broke a behavior after an alarm."""
    leads = []
    for cell, paths in outcome.paths.items():
        for path, broke in zip(paths, outcome.broke[cell], strict=True):
            at = first_above(path, steps, bound, onset)
            if broke is not None and at is not None:
                leads.append(float(broke - at))
    return leads


def bootstrap_table(rows: Sequence[Row]) -> str:
    """Return the rows of `bootstrap_rows` as Markdown."""
    shown = [
        {
            "detector": row["detector"],
            "ever false, recorded nulls": percent(row[RECORDED]),
            "ever false, leveled nulls": percent(row[LEVELED]),
            "ever false, least favorable": percent(row[EDGE]),
            "declines found": percent(row["found"]),
            "mean delay": number(row["delay"]),
            "tuned to 5 %, recorded": number(row["delay tuned recorded"]),
            "tuned to 5 %, leveled": number(row["delay tuned leveled"]),
            "area": number(row["area"], 3),
            "lead": median_range(row["lead"]),
        }
        for row in rows
    ]
    return markdown.table(shown)


def percent(proportion: Proportion | None) -> str:
    """Format a proportion as `4.2% [3.1%, 5.5%]`."""
    if proportion is None or not proportion.total:
        return NOTHING
    low, high = proportion.interval
    return f"{proportion.hits / proportion.total:.1%} [{low:.1%}, {high:.1%}]"


def delay_table(outcomes: Sequence[Outcome], preregistration: Preregistration) -> str:
    """Return the table of median delays at own bounds, by shape and size of the decline."""
    plan = Plan.of(preregistration)
    steps = calm_schedule(plan)
    rows = []
    for detector, outcome in zip(on_margins(preregistration), outcomes, strict=True):
        for shape in SHAPES:
            row: Row = {"detector": name_of(detector), "shape": shape}
            for depth in plan.sizes:
                paths = outcome.paths[PlantedDecline(shape, depth)]
                found = [first_above(p, steps, bound_of(detector), plan.onset) for p in paths]
                known = [at - plan.onset for at in found if at is not None]
                missed = len(found) - len(known)
                text = number(np.median(known)) if known else NOTHING
                row[f"depth {depth:g}"] = f"{text} ({missed} missed)" if missed else text
            rows.append(row)
    return markdown.table(rows)


def recorded_rows(runs: Sequence[Run], preregistration: Preregistration) -> list[Row]:
    """Return one row a detector and level: false alarms in null runs, leads under new tasks."""
    rows = []
    for detector, level in detectors_and_levels(preregistration):
        loud = [
            any(run.first(detector, name, level) is not None for name in run.histories)
            for run in runs
            if run.condition == NULL
        ]
        pairs = [
            (run.first(detector, name, level), run.broke(name))
            for run in runs
            if run.condition != NULL
            for name in run.histories
        ]
        breaks = sum(broke is not None for _, broke in pairs)
        name = name_of(detector).split(",")[0]
        rows.append(
            {
                "detector": f"{name}, {level}" if isinstance(detector, ForecastDetector) else name,
                "null": proportion_of(loud),
                "leads": [b - at for at, b in pairs if at is not None and b is not None],
                "breaks": breaks,
                "quiet": pairs.count((None, None)),
                "calm": len(pairs) - breaks,
            }
        )
    return rows


def detectors_and_levels(preregistration: Preregistration) -> list[tuple[Detector, Level]]:
    """Return every detector, with each level that it can reach."""
    every: list[tuple[Detector, Level]] = []
    for detector in (*preregistration.detectors, *Plan.of(preregistration).rivals):
        if isinstance(detector, ForecastDetector):
            every += [(detector, Level.WATCH), (detector, Level.CRITICAL)]
        else:
            every.append((detector, Level.WATCH))
    return every


def recorded_table(rows: Sequence[Row]) -> str:
    """Return the rows of `recorded_rows` as Markdown."""
    shown = [
        {
            "detector": row["detector"],
            "real null runs with an alarm": f"{row['null'].hits} of {row['null'].total}, "
            f"{percent(row['null'])}",
            "breaks announced ≥ 1 step before": count_of_total(
                sum(lead >= 1 for lead in row["leads"]), row["breaks"]
            ),
            "lead": median_range(row["leads"]),
            "silent where nothing broke": count_of_total(row["quiet"], row["calm"]),
        }
        for row in rows
    ]
    return markdown.table(shown)


def lead_table(runs: Sequence[Run], preregistration: Preregistration) -> str:
    """Return the table of leads of the preregistered levels by condition and behavior."""
    levels = {
        "watch": (preregistration.detector("forecast"), Level.WATCH),
        "warning": (preregistration.detector("betting"), Level.WARNING),
        "critical": (preregistration.detector("forecast"), Level.CRITICAL),
    }
    rows = []
    conditions = dict.fromkeys(run.condition for run in runs if run.condition != NULL)
    for condition in conditions:
        chosen = [run for run in runs if run.condition == condition]
        for name in chosen[0].histories:
            broke = [run.broke(name) for run in chosen]
            row: Row = {
                "condition": condition,
                "behavior": name,
                "broke": count_of_total(sum(b is not None for b in broke), len(broke)),
            }
            for level, (detector, value) in levels.items():
                first = [run.first(detector, name, value) for run in chosen]
                pairs = zip(first, broke, strict=True)
                leads = [b - a for a, b in pairs if a is not None and b is not None]
                row[f"lead of {level}"] = median_range(leads)
            rows.append(row)
    return markdown.table(rows)


def acceptance(
    bootstrapped: Sequence[Row], runs: Sequence[Run], preregistration: Preregistration
) -> list[dict[str, Any]]:
    """Return the acceptance criteria with their measurements."""
    detectors = on_margins(preregistration)
    named = dict(zip(map(name_of, detectors), bootstrapped, strict=True))
    own = named[name_of(next(d for d in preregistration.detectors if isinstance(d, BettingTest)))]
    high = own[RECORDED].interval[1]
    nulls = [run for run in runs if run.condition == NULL]
    forecast = preregistration.detector("forecast")
    loud = [
        run
        for run in nulls
        if any(run.first(forecast, name, Level.CRITICAL) is not None for name in run.histories)
    ]
    thresholds = {name_of(d): named[name_of(d)] for d in detectors if isinstance(d, Threshold)}
    rows = [
        {
            "criterion": f"warning: upper end of the interval of ever false ≤ {ALPHA}",
            "measured": f"{percent(own[RECORDED])} on recorded, {percent(own[LEVELED])} on "
            f"leveled, {percent(own[EDGE])} on least favorable nulls",
            "met": bool(high <= ALPHA),
        },
        {
            "criterion": "no critical in 50 real null runs or more",
            "measured": f"critical in {len(loud)} of {len(nulls)} runs",
            "met": bool(len(nulls) >= 50 and not loud),
        },
    ]
    for kind in (RECORDED, LEVELED):
        best = min(thresholds.items(), key=lambda item: item[1][f"delay tuned {kind}"])
        rows.append(
            {
                "criterion": "delay of betting as given ≤ that of the best threshold tuned to "
                f"{ALPHA:.0%} false alarms on {kind} nulls",
                "measured": f"{number(own['delay'])} against "
                f"{number(best[1][f'delay tuned {kind}'])} steps ({best[0]})",
                "met": bool(own["delay"] <= best[1][f"delay tuned {kind}"]),
            }
        )
    return rows
