"""Numbers and forecasts in words."""

from __future__ import annotations

import math

from riprap.types import Forecast


def number(value: float) -> str:
    """A number with three significant digits, without needless zeros or exponents."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def score(value: float, floor: float) -> str:
    """A score with two decimals, or more where two would hide on which side of the floor it is."""
    for digits in range(2, 6):
        text = f"{value:.{digits}f}"
        if (float(text) < floor) == (value < floor):
            return text
    return repr(value)


def steps(count: float) -> str:
    """A count of steps: "1 step", "12 steps"."""
    return "1 step" if count == 1 else f"{count:,.0f} steps"


def forecast(forecast: Forecast | None) -> str:
    """How far off the break is forecast, with its 80 % interval, in steps from now."""
    if forecast is None:
        return "none"
    if not math.isfinite(forecast.median) and math.isfinite(forecast.low):
        return f"in {steps(forecast.low)} at the earliest"
    if not math.isfinite(forecast.median):
        within = f" of {steps(forecast.horizon)}" if forecast.horizon else ""
        return f"not within the horizon{within}"
    high = f"{forecast.high:,.0f}" if math.isfinite(forecast.high) else "beyond the horizon"
    return f"in {steps(forecast.median)} ({forecast.low:,.0f} to {high})"
