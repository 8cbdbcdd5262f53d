"""Data rows of the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from riprap._formatting import format_forecast, format_number, format_score
from riprap._text import shorten
from riprap.report import _style as style
from riprap.report._run import BehaviorInfo, Run, Series
from riprap.types import Alert, Forecast

Row = dict[str, Any]

LOW, HIGH = 0.10, 0.90  # quantiles of the probe margins at the edges of the band
EXACT_STEPS = 300  # bars drawn one by one: most damage happens early
BINS = 900  # number of bars for the later steps


def round_for_plot(value: float) -> float:
    """Round to the digits that a figure can show."""
    return float(f"{value:.5g}")


def last_shown_step(run: Run) -> float:
    """Right end of the step axis: the last step, or the end of a forecast that is still active."""
    last = max(run.last_step, 1)
    ends = []
    for info in run.behaviors:
        evaluated = run.values(info.name, "margin_low")
        forecast = run.forecast_at(info.name, max(evaluated)) if evaluated else None
        if forecast is not None and run.broken_at(info) is None:
            end = forecast.high if math.isfinite(forecast.high) else forecast.low
            ends.append(max(evaluated) + end)
    return min(max([last, *ends]), 1.25 * last + 1) if ends else last


def score_rows(run: Run, behavior: BehaviorInfo) -> list[Row]:
    """One row per probe evaluation: the score."""
    scores = run.values(behavior.name, "score")
    return [
        {"step": step, "score": round_for_plot(score), "text": format_score(score, behavior.floor)}
        for step, score in scores.items()
    ]


def margin_rows(run: Run, behavior: BehaviorInfo) -> list[Row]:
    """One row per probe evaluation: mean margin, quantiles, threshold margin, forecast."""
    low = run.values(behavior.name, "margin_low")
    probes = run.margins.get(behavior.name, {})
    rows = []
    for step, mean in run.values(behavior.name, "margin").items():
        row: Row = {"step": step, "mean": round_for_plot(mean)}
        margins = probes.get(step)
        if margins is not None and len(margins) and np.isfinite(margins).all():
            bounds = np.quantile(margins.astype(float), [LOW, HIGH])
            row |= {"p10": round_for_plot(bounds[0]), "p90": round_for_plot(bounds[1])}
        if step in low:
            row["low"] = round_for_plot(low[step])
        row["forecast"] = format_forecast(run.forecast_at(behavior.name, step))
        rows.append(row)
    return rows


def _positive_threshold_margin(run: Run, behavior: BehaviorInfo, step: int) -> float | None:
    """Threshold margin at a step; None if it is not positive."""
    low = run.values(behavior.name, "margin_low").get(step)
    return low if low is not None and low > 0 else None


def segment_rows(run: Run, behavior: BehaviorInfo) -> list[Row]:
    """One row per finite median forecast: from the threshold margin to 0 at the forecast step."""
    rows = []
    for step in run.values(behavior.name, "forecast_median"):
        apex = _positive_threshold_margin(run, behavior, step)
        forecast = run.forecast_at(behavior.name, step)
        if apex is None or forecast is None or not math.isfinite(forecast.median):
            continue
        ends = {"end": round_for_plot(step + forecast.median), "low": round_for_plot(apex)}
        rows.append({"step": step} | ends | {"forecast": format_forecast(forecast)})
    return rows


def cone_rows(run: Run, behavior: BehaviorInfo, right: float) -> list[Row]:
    """Corners of the 80 % intervals: of the first alert of each level, and of the latest forecast.

    A cone starts at the threshold margin and ends at the forecast interval on the line of margin 0.
    Without a finite upper bound it ends at the right end of the axis.
    """
    cones = [
        (f"forecast of the first {level} alert", alert.step, alert.forecast)
        for level, alert in run.first_alerts(behavior.name).items()
    ]
    evaluated = run.values(behavior.name, "margin_low")
    if evaluated and run.broken_at(behavior) is None:
        last = max(evaluated)
        cones.append(("latest forecast", last, run.forecast_at(behavior.name, last)))
    rows: list[Row] = []
    for number, (name, step, forecast) in enumerate(cones):
        apex = _positive_threshold_margin(run, behavior, step)
        if apex is None or forecast is None or not math.isfinite(forecast.low):
            continue
        shared = {"cone": number, "name": name, "made": step, "forecast": format_forecast(forecast)}
        rows += [corner | shared for corner in _cone_corners(step, apex, forecast, right)]
    return rows


def _cone_corners(step: int, apex: float, forecast: Forecast, right: float) -> list[Row]:
    """Corners of a triangle, as lower and upper edge of an area."""
    low = step + max(forecast.low, 0.0)
    high = step + forecast.high if math.isfinite(forecast.high) else max(right, low)
    high = max(high, low + 1e-3)
    middle = apex * (high - low) / (high - step)
    corners = [(step, apex, apex), (low, 0.0, middle), (high, 0.0, 0.0)]
    if low <= step:
        corners = [(step, 0.0, apex), (high, 0.0, 0.0)]
    return [
        {"step": round_for_plot(x), "lower": round_for_plot(a), "upper": round_for_plot(b)}
        for x, a, b in corners
    ]


def bar_rows(interference: Series) -> list[Row]:
    """Bars of the predicted change, each from step − 1 to step.

    In a long run, late steps share bars that span the smallest and the largest value.
    """
    exact = {step: r for step, r in interference.items() if step <= EXACT_STEPS}
    late = {step: r for step, r in interference.items() if step > EXACT_STEPS}
    size = max(1, math.ceil((max(late) - EXACT_STEPS) / BINS)) if late else 1
    bins: dict[int, list[tuple[int, float]]] = {}
    for step, value in late.items():
        bins.setdefault((step - EXACT_STEPS - 1) // size, []).append((step, value))
    groups = [[item] for item in exact.items()] + list(bins.values())
    return [bar for group in groups for bar in _bars_of_group(group)]


def _bars_of_group(group: list[tuple[int, float]]) -> Iterable[Row]:
    first, last = group[0][0], group[-1][0]
    values = [value for _, value in group]
    place = {"step": first - 1, "end": last}
    steps = str(first) if first == last else f"{first} to {last}"
    for color, value in ((style.DOWN, min(values)), (style.UP, max(values))):
        if value != 0 and (value < 0) == (color == style.DOWN):
            bar = {"value": round_for_plot(value), "steps": steps, "text": format_number(value)}
            yield place | bar | {"color": color}


def decimate(series: Series, limit: int) -> Series:
    """Reduce a series to about `limit` points: the minimum and the maximum of each stretch."""
    size = math.ceil(2 * len(series) / limit)
    if size <= 2:
        return series
    items = list(series.items())
    reduced: Series = {}
    for start in range(0, len(items), size):
        stretch = items[start : start + size]
        ends = {min(stretch, key=lambda item: item[1]), max(stretch, key=lambda item: item[1])}
        reduced |= dict(sorted(ends))
    return reduced


def realized_rows(run: Run, behavior: BehaviorInfo) -> list[Row]:
    """Realized change of the mean margin per step, between consecutive probe evaluations."""
    rows = []
    for (before, old), (step, new) in pairwise(run.values(behavior.name, "margin").items()):
        if step > before:
            slope = (new - old) / (step - before)
            text = format_number(slope)
            rows.append({"step": before, "end": step, "value": round_for_plot(slope), "text": text})
    return rows


def alert_rows(alerts: Iterable[Alert]) -> list[Row]:
    """One row per alert, with the texts of its tooltip."""
    return [
        {
            "step": alert.step,
            "behavior": alert.behavior or "the run",
            "level": str(alert.level),
            "color": style.LEVELS[alert.level],
            "detector": alert.detector,
            "message": shorten(alert.message, 500),
            "forecast": format_forecast(alert.forecast),
        }
        for alert in alerts
    ]
