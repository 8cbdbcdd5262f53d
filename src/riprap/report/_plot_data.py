"""The rows of data behind the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from riprap._text import shorten
from riprap.report import _formatting as words
from riprap.report import _style as style
from riprap.report._run import Run, Series, Watched
from riprap.types import Alert, Forecast

Row = dict[str, Any]

LOW, HIGH = 0.10, 0.90  # quantiles of the probe margins that bound the band
EXACT_STEPS = 300  # drawn one by one; most damage is done early
BINS = 900  # for the steps after those


def short(value: float) -> float:
    """A value with as many digits as a figure can show."""
    return float(f"{value:.5g}")


def last_shown(run: Run) -> float:
    """Right end of the steps' axis: the last step, and room for forecasts that still stand."""
    last = max(run.last_step, 1)
    ends = []
    for watched in run.behaviors:
        visits = run.of(watched.name, "margin_low")
        forecast = run.forecast_at(watched.name, max(visits)) if visits else None
        if forecast is not None and run.broken_at(watched) is None:
            end = forecast.high if math.isfinite(forecast.high) else forecast.low
            ends.append(max(visits) + end)
    return min(max([last, *ends]), 1.25 * last + 1) if ends else last


def score_rows(run: Run, watched: Watched) -> list[Row]:
    """One row a visit: the score."""
    scores = run.of(watched.name, "score")
    return [
        {"step": step, "score": short(score), "text": words.score(score, watched.floor)}
        for step, score in scores.items()
    ]


def margin_rows(run: Run, watched: Watched) -> list[Row]:
    """One row a visit: mean margin, band of the probes, deciding margin, forecast in words."""
    low = run.of(watched.name, "margin_low")
    probes = run.margins.get(watched.name, {})
    rows = []
    for step, mean in run.of(watched.name, "margin").items():
        row: Row = {"step": step, "mean": short(mean)}
        own = probes.get(step)
        if own is not None and len(own) and np.isfinite(own).all():
            bounds = np.quantile(own.astype(float), [LOW, HIGH])
            row |= {"p10": short(bounds[0]), "p90": short(bounds[1])}
        if step in low:
            row["low"] = short(low[step])
        row["forecast"] = words.forecast(run.forecast_at(watched.name, step))
        rows.append(row)
    return rows


def _apex(run: Run, watched: Watched, step: int) -> float | None:
    """The deciding margin at a visit, None where it is not above 0 and nothing is left to fall."""
    low = run.of(watched.name, "margin_low").get(step)
    return low if low is not None and low > 0 else None


def segment_rows(run: Run, watched: Watched) -> list[Row]:
    """For each visit with a finite median: from its deciding margin to 0 at the forecast step."""
    rows = []
    for step in run.of(watched.name, "forecast_median"):
        apex, forecast = _apex(run, watched, step), run.forecast_at(watched.name, step)
        if apex is None or forecast is None or not math.isfinite(forecast.median):
            continue
        ends = {"step": step, "end": short(step + forecast.median), "low": short(apex)}
        rows.append(ends | {"forecast": words.forecast(forecast)})
    return rows


def cone_rows(run: Run, watched: Watched, right: float) -> list[Row]:
    """The 80 % intervals worth seeing: at the first alert of each level, and the one that stands.

    A cone runs from the deciding margin of its visit to the interval on the line of margin 0; one
    whose upper bound lies beyond the horizon runs to the right end of the axis.
    """
    cones = [
        (f"forecast of the first {level} alert", alert.step, alert.forecast)
        for level, alert in run.first_alerts(watched.name).items()
    ]
    visits = run.of(watched.name, "margin_low")
    if visits and run.broken_at(watched) is None:
        last = max(visits)
        cones.append(("latest forecast", last, run.forecast_at(watched.name, last)))
    rows: list[Row] = []
    for number, (name, step, forecast) in enumerate(cones):
        apex = _apex(run, watched, step)
        if apex is None or forecast is None or not math.isfinite(forecast.low):
            continue
        said = {"cone": number, "name": name, "made": step, "forecast": words.forecast(forecast)}
        rows += [corner | said for corner in _corners(step, apex, forecast, right)]
    return rows


def _corners(step: int, apex: float, forecast: Forecast, right: float) -> list[Row]:
    """A triangle as the upper and lower edge of an area, at its three corners."""
    low = step + max(forecast.low, 0.0)
    high = step + forecast.high if math.isfinite(forecast.high) else max(right, low)
    high = max(high, low + 1e-3)
    middle = apex * (high - low) / (high - step)
    corners = [(step, apex, apex), (low, 0.0, middle), (high, 0.0, 0.0)]
    if low <= step:
        corners = [(step, 0.0, apex), (high, 0.0, 0.0)]
    return [{"step": short(x), "lower": short(a), "upper": short(b)} for x, a, b in corners]


def bar_rows(interference: Series) -> list[Row]:
    """Bars of the predicted change, from step − 1 to step.

    Late steps of a long run share bars, which then span the extremes of their steps.
    """
    exact = {step: r for step, r in interference.items() if step <= EXACT_STEPS}
    late = {step: r for step, r in interference.items() if step > EXACT_STEPS}
    size = max(1, math.ceil((max(late) - EXACT_STEPS) / BINS)) if late else 1
    bins: dict[int, list[tuple[int, float]]] = {}
    for step, value in late.items():
        bins.setdefault((step - EXACT_STEPS - 1) // size, []).append((step, value))
    groups = [[item] for item in exact.items()] + list(bins.values())
    return [bar for group in groups for bar in _bars(group)]


def _bars(group: list[tuple[int, float]]) -> Iterable[Row]:
    first, last = group[0][0], group[-1][0]
    values = [value for _, value in group]
    place = {"step": first - 1, "end": last}
    steps = str(first) if first == last else f"{first} to {last}"
    for side, value in (("down", min(values)), ("up", max(values))):
        if (value < 0) == (side == "down") and value != 0:
            text = words.number(value)
            yield (
                place
                | {"value": short(value), "steps": steps}
                | {
                    "text": text,
                    "colour": style.DOWN if side == "down" else style.UP,
                }
            )


def decimated(series: Series, limit: int) -> Series:
    """About `limit` points of a long series: the lowest and the highest of each stretch."""
    size = math.ceil(2 * len(series) / limit)
    if size <= 2:
        return series
    items = list(series.items())
    kept: Series = {}
    for start in range(0, len(items), size):
        stretch = items[start : start + size]
        ends = {min(stretch, key=lambda item: item[1]), max(stretch, key=lambda item: item[1])}
        kept |= dict(sorted(ends))
    return kept


def realised_rows(run: Run, watched: Watched) -> list[Row]:
    """The realised change of the mean margin a step, between one visit and the next."""
    visits = list(run.of(watched.name, "margin").items())
    rows = []
    for (before, old), (step, new) in pairwise(visits):
        if step > before:
            slope = (new - old) / (step - before)
            text = words.number(slope)
            rows.append({"step": before, "end": step, "value": short(slope), "text": text})
    return rows


def alert_rows(alerts: Iterable[Alert]) -> list[Row]:
    """One row an alert, with all that its tooltip says."""
    return [
        {
            "step": alert.step,
            "behavior": alert.behavior or "the run",
            "level": str(alert.level),
            "colour": style.LEVELS[alert.level],
            "detector": alert.detector,
            "message": shorten(alert.message, 500),
            "forecast": words.forecast(alert.forecast),
        }
        for alert in alerts
    ]
