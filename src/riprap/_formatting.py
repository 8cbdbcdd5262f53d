"""Text of numbers and forecasts, as reports and terminals show them."""

from __future__ import annotations

import math

from riprap.types import Alert, Forecast

FEW_SECONDS = 60  # of the monitor in a run, for which nobody waits


def format_number(value: float) -> str:
    """Format a number with three significant digits, without unnecessary zeros or exponents."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def format_score(value: float, floor: float) -> str:
    """Format a score with two decimals; with more if rounding would move it across its floor."""
    for digits in range(2, 6):
        text = f"{value:.{digits}f}"
        if (float(text) < floor) == (value < floor):
            return text
    return repr(value)


def format_steps(count: float) -> str:
    """Format a number of steps: "1 step", "12 steps"."""
    return "1 step" if count == 1 else f"{count:,.0f} steps"


def format_forecast(forecast: Forecast | None) -> str:
    """Format the forecast steps until the break, with the 80 % interval."""
    if forecast is None:
        return "none"
    if forecast.is_broken:
        return "broken already"
    if not math.isfinite(forecast.median) and math.isfinite(forecast.low):
        return f"in {format_steps(forecast.low)} at the earliest"
    if not math.isfinite(forecast.median):
        within = f" of {format_steps(forecast.horizon)}" if forecast.horizon else ""
        return f"not within the horizon{within}"
    high = f"{forecast.high:,.0f}" if math.isfinite(forecast.high) else "beyond the horizon"
    return f"in {format_steps(max(1, round(forecast.median)))} ({forecast.low:,.0f} to {high})"


def format_expected(alert: Alert) -> str:
    """Format the step at which an alert expected the break, with the 80 % interval."""
    forecast = alert.forecast
    if forecast is None or forecast.is_broken or not math.isfinite(forecast.low):
        return format_forecast(forecast)
    low = f"{alert.step + forecast.low:,.0f}"
    if not math.isfinite(forecast.median):
        return f"at step {low} at the earliest"
    high = "beyond the horizon"
    if math.isfinite(forecast.high):
        high = f"{alert.step + forecast.high:,.0f}"
    median = alert.step + max(1, round(forecast.median))
    return f"at step {median:,} ({low} to {high})"


def format_cost(share: float, seconds: float | None) -> str:
    """Format the time of the monitor: in seconds where they are few, else as a share of training.

    The share says little of a short run, in which the first evaluations are most of the time.
    """
    if seconds is not None and seconds < FEW_SECONDS:
        return f"{format_number(seconds)} s"
    return f"{share:.1%} of training"
