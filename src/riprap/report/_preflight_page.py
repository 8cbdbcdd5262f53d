"""Page of a prediction before training: verdict, forecasts, and the rows that do most of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from riprap._formatting import format_number, format_steps
from riprap.detectors import score
from riprap.errors import ConfigError
from riprap.prediction import BehaviorPrediction, Outlook, Preflight
from riprap.report import _style as style
from riprap.report._bundle import Head, render_page, write_page
from riprap.report._charts import apply_style
from riprap.report._diagnosis_page import to_base64_png

WORST = 20  # rows of the table
ALL_ROWS, SEEN = "all rows", "all rows: seen, no forecast"


def outlooks(one: BehaviorPrediction) -> dict[str, Outlook]:
    """Return the outlooks of a behavior by what is changed."""
    found = {ALL_ROWS if one.broke_at is None else SEEN: one.outlook}
    if one.without_worst is not None:
        found["without the worst 10 %"] = one.without_worst
    for share, other in one.replay.items():
        found[f"with {100 * share:.0f} % replay"] = other
    return found


def forecast_figure(found: Preflight) -> alt.VConcatChart:
    """Figure of the forecasts: when a break comes if one does, by what is changed."""
    rows = []
    for one in found.behaviors.values():
        for change, outlook in outlooks(one).items():
            low, median, high = (
                min(value, found.steps) if math.isfinite(value) else None
                for value in (
                    outlook.forecast.low,
                    outlook.forecast.median,
                    outlook.forecast.high,
                )
            )
            end = found.steps if low is not None and high is None else high
            rows.append(
                {"behavior": one.name, "change": change, "low": low, "median": median, "high": end}
            )
    frame = pd.DataFrame(rows, columns=["behavior", "change", "low", "median", "high"])
    panels = []
    for name in found.behaviors:
        own = frame[frame["behavior"] == name]
        y = alt.Y("change:N", sort=None, title=None).axis(minExtent=140, maxExtent=140)
        scale = alt.Scale(domain=[0, found.steps], nice=False)
        x = alt.X("low:Q", title="step of the run", scale=scale)
        base = alt.Chart(own)
        bars = base.mark_bar(height=9, color=style.BAND).encode(y=y, x=x, x2="high:Q")
        points = base.mark_point(filled=True, size=70, color=style.BLUE, opacity=1)
        chart = bars + points.encode(y=y, x=alt.X("median:Q", scale=scale))
        panels.append(chart.properties(width=460, height=24 * len(own), title=name))
    figure: alt.VConcatChart = apply_style(alt.vconcat(*panels, spacing=16))
    return figure


def share_figure(found: Preflight) -> alt.Chart | None:
    """Figure of what the worst rows do: their share of the fall of each mean margin.

    None: the rows together let no mean margin fall.
    """
    rows = []
    for one in found.behaviors.values():
        falls = (found.weights * one.harm)[one.ranking]
        if falls.sum() <= 0:
            continue
        shares = np.concatenate([[0.0], np.cumsum(falls) / falls.sum()])
        for at in np.unique(np.linspace(0, len(falls), 101).astype(int)):
            part = {"rows": at / len(falls), "share": float(shares[at])}
            rows.append({"behavior": one.name} | part)
    if not rows:
        return None
    frame = pd.DataFrame(rows, columns=["behavior", "rows", "share"])
    chart = alt.Chart(frame).mark_line(strokeWidth=2)
    chart = chart.encode(
        x=alt.X("rows:Q", title="rows, the worst first", axis=alt.Axis(format="%")),
        y=alt.Y("share:Q", title="share of the fall", axis=alt.Axis(format="%")),
        color=alt.Color(
            "behavior:N",
            title=None,
            scale=alt.Scale(scheme="dark2"),
            legend=alt.Legend(orient="bottom", columns=3),
        ),
    ).properties(width=460, height=220)
    figure: alt.Chart = apply_style(chart)
    return figure


def behavior_rows(found: Preflight) -> list[dict[str, str]]:
    """Return the table of the behaviors, as texts."""
    rows = []
    for one in found.behaviors.values():
        half = one.rows_for_half if one.explained else None
        rows.append(
            {
                "behavior": one.name,
                "score": f"{score(one.start_margins):.2f}",
                "after the warm start": f"{score(one.margins):.2f}",
                "threshold margin": format_number(one.threshold_margin),
                "pace": format_number(one.pace),
                "drift": format_number(one.drift),
                "probability": one.probability_text,
                "rows that do half": "–" if half is None else f"{half:,}",
            }
        )
    return rows


def change_rows(found: Preflight) -> list[dict[str, str]]:
    """Return the table of what dropping rows and replay would change, as texts."""
    return [
        {
            "behavior": one.name,
            "change": change,
            "if it breaks": one.break_text if change == SEEN else outlook.span(),
            "probability": "seen" if change == SEEN else outlook.probability_text,
            "drift": format_number(outlook.drift),
        }
        for one in found.behaviors.values()
        for change, outlook in outlooks(one).items()
    ]


def worst_rows(
    found: Preflight, one: BehaviorPrediction, texts: Mapping[int, tuple[str, str]]
) -> list[dict[str, str]]:
    """Return the table of the worst rows of a behavior, as texts."""
    falls = found.weights * one.harm
    total = float(falls.sum())
    rows = []
    for index in one.ranking[:WORST].tolist():
        prompt, response = texts.get(int(found.rows[index]), ("", ""))
        rows.append(
            {
                "row": f"{int(found.rows[index]):,}",
                "harm": format_number(float(one.harm[index])),
                "share": "–" if total <= 0 else f"{falls[index] / total:.1%}",
                "tokens": f"{found.tokens[index]:,.0f}",
                "loss": format_number(float(found.loss[index])),
                "norm": format_number(float(found.norm[index])),
                "prompt": prompt,
                "response": response,
            }
        )
    return rows


def _head(found: Preflight, title: str) -> Head:
    numbers = {
        "behaviors predicted to break": f"{len(found.broken)} of {len(found.behaviors)}",
    }
    worst = max(found.behaviors.values(), key=lambda own: own.outlook.probability, default=None)
    advice = ""
    if worst is not None:
        if worst.broke_at is None:
            numbers[f"probability that {worst.name} breaks"] = worst.probability_text
            advice = _advice(worst)
        if worst.explained and worst.rows_for_half is not None:
            rows = f"{worst.rows_for_half:,} of {len(found.rows):,}"
            numbers["rows that do half of it"] = rows
    scored = f"Predicted before training from {found.scored}, after a warm start of "
    return Head(
        "preflight",
        title,
        found.verdict,
        numbers,
        advice,
        limits="It is a forecast. It ignores that rows which are learned stop to pull, that a "
        "behavior may fall faster the weaker it is, that single batches differ, and that weights "
        "which the warm start did not reach have no scale.",
        notes=(f"{scored}{format_steps(found.warm_steps)} on a copy of the model.",),
    )


def _advice(worst: BehaviorPrediction) -> str:
    """Return the change of the data that makes a break the least probable, if one does."""
    changes = {
        name: outlook
        for name, outlook in outlooks(worst).items()
        if name not in (ALL_ROWS, SEEN) and outlook.probability < worst.outlook.probability
    }
    if not changes:
        return ""
    name, best = min(changes.items(), key=lambda pair: pair[1].probability)
    return (
        f"{name[0].upper()}{name[1:]}, the probability that {worst.name} breaks is "
        f"{best.probability_text} in place of {worst.probability_text}."
    )


def write_preflight(
    found: Preflight,
    title: str,
    texts: Mapping[int, tuple[str, str]],
    settings: Mapping[str, Any],
    path: Path,
) -> Path:
    """Write the page of a prediction, and return its path.

    Args:
        texts: prompt and response of rows, by their number.

    Raises:
        ConfigError: the file cannot be written, or is something else than a prediction.
    """
    breaks = set(found.broken)
    badges = {
        name: ("critical", "break" if one.broke_at is None else "broke")
        if name in breaks
        else ("kept", "no break")
        for name, one in found.behaviors.items()
    }
    shares = share_figure(found)
    page = render_page(
        "preflight.html",
        _head(found, title),
        found=found,
        badges=badges,
        behaviors=behavior_rows(found),
        changes=change_rows(found),
        worst={one.name: worst_rows(found, one, texts) for one in found.behaviors.values()},
        forecasts=to_base64_png(forecast_figure(found)),
        shares=None if shares is None else to_base64_png(shares),
        settings=dict(settings)
        | {
            "scored after": f"{', '.join(map(str, found.checkpoints))} steps",
            "clipping": f"shortens a step to {100 * found.clipped:.0f} % of its length",
        },
    )
    try:
        write_page(path, "preflight", page)
    except OSError as error:
        raise ConfigError(f"cannot write the prediction to {path}: {error}") from error
    return path
