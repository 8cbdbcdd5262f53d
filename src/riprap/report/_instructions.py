"""The instructions of fast–slow training: their rewards over the cycles, and their tables."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from riprap._formatting import format_number
from riprap.record import Instructions
from riprap.report import _panels as panels
from riprap.report import _plot_data as plot_data
from riprap.report import _style as style

WIDTH, HEIGHT = 860, 150
MAX_TICKS = 20  # of the figure
MAX_ROWS = 200  # of a table; the record has all
NONE = "(none: the problem as it is)"


def reward_figure(own: Instructions) -> Any:
    """Draw the mean reward of each instruction in each cycle; a line for one that stayed."""
    rows = [
        {
            "cycle": cycle,
            "step": own.steps[cycle],
            "reward": plot_data.round_for_plot(reward),
            "id": found.id,
            "text": found.text or NONE,
            "state": "kept" if cycle in found.kept else "not kept",
        }
        for found in own.evaluated.values()
        for cycle, reward in found.rewards.items()
        if reward is not None
    ]
    n = len(own.steps)
    ticks = list(range(1, n + 1, math.ceil(n / MAX_TICKS)))
    x = alt.X(
        "cycle:Q",
        axis=alt.Axis(title="cycle", grid=False, format=",d", values=ticks),
        scale=alt.Scale(domain=[0.5, n + 0.5], nice=False),
    )
    y = alt.Y("reward:Q", title="mean reward", scale=alt.Scale(zero=False, padding=6))
    color = alt.Color(
        "state:N",
        legend=None,
        scale=alt.Scale(domain=["kept", "not kept"], range=[style.BLUE, style.AXIS]),
    )
    tips = panels.tooltips(
        id="instruction", text="text", reward="mean reward", state="after it", step="step"
    )
    line = alt.Chart().mark_line(strokeWidth=1.2, color=style.BAND)
    point = alt.Chart().mark_circle(size=46, opacity=1)
    layers = [line.encode(x=x, y=y, detail="id:N")]
    layers.append(point.encode(x=x, y=y, color=color, tooltip=tips))
    figure = alt.layer(*layers, data=panels.inline_data(rows))
    return figure.properties(width=WIDTH, height=HEIGHT)


def population_table(own: Instructions) -> list[dict[str, str]]:
    """Return the instructions in use, the best first."""
    return [_row(own, number) for number in own.population]


def dropped_table(own: Instructions) -> list[dict[str, str]]:
    """Return the instructions that were evaluated and are not in use, the newest first."""
    left = [number for number in own.evaluated if number not in own.population]
    return [_row(own, number) for number in reversed(left)][:MAX_ROWS]


def rejected_table(own: Instructions) -> list[dict[str, str]]:
    """Return the instructions that did not beat their parents, the newest first."""
    return [
        {
            "cycle": f"{one.cycle:,}",
            "text": one.text or NONE,
            "parent": str(one.parent),
            "reward on the minibatch": _reward(one.reward),
            "reward of the parent": _reward(one.parent_reward),
        }
        for one in reversed(own.rejected)
    ][:MAX_ROWS]


def _row(own: Instructions, number: int) -> dict[str, str]:
    found = own.evaluated[number]
    return {
        "instruction": str(number),
        "text": found.text or NONE,
        "parent": "none: given" if found.parent is None else str(found.parent),
        "mean reward in its last cycle": _reward(found.reward),
        "evaluated in cycles": _spans(list(found.rewards)),
        "kept after cycles": _spans(found.kept) or "none",
    }


def _reward(value: float | None) -> str:
    return "not scored" if value is None else format_number(value)


def _spans(numbers: list[int]) -> str:
    """Return rising numbers as text: "1–3, 5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)
