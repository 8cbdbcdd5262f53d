"""80 % intervals of forecasts: how often they hold, on the whole and by schedule and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.harness import markdown
from experiments.onset.tables import Judged, share
from riprap.types import Forecast

AIM = (0.75, 0.88)  # share of 80 % intervals that hold
SETTINGS = ("schedule", "optimizer")
LABELS = {"cosine": "warm-up, cosine", "warmup_cosine": "warm-up, cosine"}  # none is without


def held(own: Judged) -> dict[str, list[bool]]:
    """Return which forecasts of one behavior-run hold, by kind.

    A forecast holds if its break is inside, or if there is none within its horizon and the
    interval does not end within it. Kinds: `came`: those with a break within the horizon;
    `forecast`: those of them whose interval begins within it; `overall`: all.
    """
    found: dict[str, list[bool]] = {"came": [], "forecast": [], "overall": []}
    for left, forecast, _ in told(own):
        if left > forecast.horizon:
            found["overall"].append(forecast.high > forecast.horizon)
            continue
        holds = forecast.low <= left <= forecast.high
        found["overall"].append(holds)
        found["came"].append(holds)
        if forecast.low <= forecast.horizon:
            found["forecast"].append(holds)
    return found


def told(own: Judged) -> list[tuple[float, Forecast, int]]:
    """Return the steps left until the break, the forecast and its place, before the break."""
    return [
        (np.inf if own.broke is None else own.broke - step, forecast, place)
        for place, (step, forecast) in enumerate(zip(own.evaluated, own.forecasts, strict=True))
        if forecast is not None and not forecast.is_broken
    ]


def shares_held(judged: Sequence[Judged], kind: str) -> list[float]:
    """Return the share of intervals that hold in each behavior-run that has some of this kind."""
    lists = [held(own)[kind] for own in judged]
    return [float(np.mean(own)) for own in lists if own]


def interval_row(name: str, judged: Sequence[Judged]) -> dict[str, str]:
    """Return how often the forecast interval holds the break, and the errors of the forecasts.

    Each behavior-run counts once: shares and medians are over runs of the shares and medians of
    its evaluations.
    """
    errors, trivial = [], []
    for own in judged:
        off, off_trivial = [], []
        for left, forecast, place in told(own):
            if left > forecast.horizon:
                continue
            off.append(abs(min(forecast.median, forecast.horizon) - left))
            line = -own.rivals["line through the last four"][place]
            off_trivial.append(abs(min(max(line, 0.0), forecast.horizon) - left))
        errors += [np.median(off)] if off else []
        trivial += [np.median(off_trivial)] if off_trivial else []
    error, other = (np.median(own) if own else np.nan for own in (errors, trivial))
    return {
        "rule": name,
        "break in the interval, where one was forecast": _mean(judged, "forecast"),
        "break in the interval, where one came": _mean(judged, "came"),
        "interval right, overall": _mean(judged, "overall"),
        "median error, steps": markdown.number(error, 1),
        "of a line through the last four": markdown.number(other, 1),
    }


def _mean(judged: Sequence[Judged], kind: str) -> str:
    shares = shares_held(judged, kind)
    return markdown.number(np.mean(shares) if shares else None, 2)


def interval_rows_by(judged: Sequence[Judged]) -> list[dict[str, str]]:
    """Return how often the intervals hold by schedule and by optimizer, and where they do not.

    Shares are those of `interval_row`, with the number of behavior-runs; a run without a break
    counts overall alone.
    """
    rows = [_row("all", judged)]
    for setting in SETTINGS:
        label = _labels(setting)
        for value in sorted({label(own) for own in judged}):
            part = [own for own in judged if label(own) == value]
            rows += [_row(f"{setting}: {value}", part)] if len(part) < len(judged) else []
    return rows


def _labels(setting: str) -> Callable[[Judged], str]:
    def label(own: Judged) -> str:
        value: Any = own.outcome.trace.about.get(setting, "none")
        return LABELS.get(str(value), str(value))

    return label


def _row(name: str, part: Sequence[Judged]) -> dict[str, str]:
    runs = {own.outcome.trace.name for own in part}
    row = {"setting": name, "runs, behavior-runs": f"{len(runs)}, {len(part)}"}
    verdicts = []
    for kind, title in (
        ("forecast", "break in it, where one was forecast"),
        ("came", "break in it, where one came"),
        ("overall", "right, overall"),
    ):
        shares = shares_held(part, kind)
        row[title] = share(sum(shares), len(shares), 2)
        verdicts.append(verdict(float(np.mean(shares))) if shares else markdown.NOTHING)
    return row | {"the aim is": ", ".join(verdicts)}


def verdict(value: float) -> str:
    """Say on which side of the aim a share is."""
    if value < AIM[0]:
        return "missed (too few)"
    return "met" if value <= AIM[1] else "missed (too many)"
