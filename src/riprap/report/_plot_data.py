"""Data rows of the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from riprap._formatting import format_forecast, format_number, format_score
from riprap._text import shorten
from riprap.record import Series
from riprap.report import _style as style
from riprap.report._run import BehaviorInfo, Run
from riprap.types import Alert, Forecast

Row = dict[str, Any]

LOW, HIGH = 0.10, 0.90  # quantiles of the probe margins at the edges of the band
EXACT_STEPS = 300  # bars drawn one by one: most damage happens early
BINS = 900  # number of bars for the later steps
MAX_POINTS = 1000  # per line of a behavior's panels


def round_for_plot(value: float) -> float:
    """Round to the digits that a figure can show."""
    return float(f"{value:.5g}")


def round_or_gap(value: float) -> float | None:
    """Round to the digits that a figure can show; None, a gap in the line, for NaN."""
    return None if math.isnan(value) else round_for_plot(value)


def last_shown_step(run: Run) -> float:
    """Right end of the step axis: the last step, or the end of a forecast that is still active."""
    last = max(run.last_step, 1)
    is_early = run.conclusion.ended_early
    if not run.is_running and not is_early:
        return last
    ends = []
    for info in run.behaviors:
        evaluated = run.values(info.name, "margin_low")
        forecast = run.forecast_at(info.name, max(evaluated)) if evaluated else None
        if forecast is not None and run.broken_at(info) is None:
            end = forecast.high if math.isfinite(forecast.high) else forecast.low
            ends.append(max(evaluated) + end)
    most = 12 * last if is_early else 1.25 * last + 1
    return min(max([last, *ends]), most) if ends else last


def extremes(values: np.ndarray, limit: int) -> list[int]:
    """Return the places of about `limit` values, in order; of all, if there are no more.

    The places are those of the first and the last value, and of the smallest and the largest one
    and the first NaN of each stretch, so that no spike and no gap is lost.
    """
    size = math.ceil(2 * len(values) / limit)
    if size <= 2:
        return list(range(len(values)))
    places = {0, len(values) - 1}
    for start in range(0, len(values), size):
        stretch = values[start : start + size]
        gaps = np.isnan(stretch)
        places |= {start + int(np.where(gaps, np.inf, stretch).argmin())}
        places |= {start + int(np.where(gaps, -np.inf, stretch).argmax())}
        places |= {start + int(gaps.argmax())} if gaps.any() else set()
    return sorted(places)


def thin(series: Series, limit: int) -> Series:
    """Reduce a series to its extremes; see `extremes`."""
    return series.take(extremes(series.value_array, limit))


def is_thinned(run: Run) -> bool:
    """Return whether the panels of a behavior leave out readings."""
    return any(
        len(extremes(series.value_array, MAX_POINTS)) < len(series)
        for (_, signal, _), series in run.series.items()
        if signal in ("score", "margin", "margin_low", "interference")
    )


def score_rows(run: Run, behavior: BehaviorInfo) -> list[Row]:
    """One row per probe evaluation: the score."""
    scores = thin(run.values(behavior.name, "score"), MAX_POINTS)
    return [
        {"step": step, "score": round_for_plot(score), "text": format_score(score, behavior.floor)}
        for step, score in scores.pairs()
    ]


def margin_rows(run: Run, behavior: BehaviorInfo) -> list[Row]:
    """One row per probe evaluation: mean margin, quantiles, threshold margin, forecast."""
    low = run.values(behavior.name, "margin_low")
    probes = run.margins.get(behavior.name, {})
    means = run.values(behavior.name, "margin")
    shown = {*thin(means, MAX_POINTS), *thin(low, MAX_POINTS)}
    rows = []
    for step, mean in means.pairs():
        if step not in shown:
            continue
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
    for step in thin(run.values(behavior.name, "forecast_median"), MAX_POINTS):
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


def bar_rows(interference: Series, evaluated: Iterable[int] = ()) -> list[Row]:
    """Bars of the predicted change per step, over the steps that each reading covers.

    A reading covers the steps since the reading before, or since the probe evaluation before it. In
    a long run, late steps share bars that span the smallest and the largest value.
    """
    if not interference:
        return []
    ends, evaluations = interference.step_array, np.array([-1, *evaluated])
    begins = evaluations[np.searchsorted(evaluations, ends) - 1]  # the last evaluation before
    begins[1:] = np.maximum(begins[1:], ends[:-1])
    begins = np.where(begins < 0, ends - 1, begins)
    rates = interference.value_array / (ends - begins)
    n_exact = int(np.searchsorted(ends, EXACT_STEPS, side="right"))
    size = max(1, math.ceil((int(ends[-1]) - EXACT_STEPS) / BINS))
    bins = (ends[n_exact:] - EXACT_STEPS - 1) // size
    starts = n_exact + np.flatnonzero(np.diff(bins, prepend=-1))
    edges = [*range(n_exact), *starts.tolist(), len(ends)]
    return [
        bar
        for first, end in pairwise(edges)
        for bar in _bars(int(begins[first]), int(ends[end - 1]), rates[first:end])
    ]


def _bars(begin: int, end: int, rates: np.ndarray) -> Iterable[Row]:
    steps = str(end) if end == begin + 1 else f"{begin + 1} to {end}"
    for color, value in ((style.DOWN, float(rates.min())), (style.UP, float(rates.max()))):
        if value != 0 and (value < 0) == (color == style.DOWN):
            bar = {"value": round_for_plot(value), "steps": steps, "text": format_number(value)}
            yield {"step": begin, "end": end} | bar | {"color": color}


def realized_rows(run: Run, behavior: BehaviorInfo) -> list[Row]:
    """Realized change of the mean margin per step, between consecutive probe evaluations.

    In a long run, neighbors share two lines: the smallest and the largest value.
    """
    margins = run.values(behavior.name, "margin")
    if len(margins) < 2:
        return []
    steps = margins.step_array
    slopes = np.diff(margins.value_array) / np.diff(steps)
    size = math.ceil(2 * len(slopes) / MAX_POINTS)
    starts = range(0, len(slopes), size if size > 2 else 1)
    rows = []
    for first, end in pairwise([*starts, len(slopes)]):
        group = slopes[first:end]
        for slope in dict.fromkeys((float(group.min()), float(group.max()))):
            place = {"step": int(steps[first]), "end": int(steps[end])}
            rows.append(place | {"value": round_for_plot(slope), "text": format_number(slope)})
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
