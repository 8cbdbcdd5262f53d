"""Front of alerts: breaks announced against false alarms, by rule, as its bound is swept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from experiments.harness import markdown
from experiments.onset.rivals import RIVALS
from experiments.onset.tables import Judged, judge, leads
from experiments.onset.trace import Trace
from riprap.detectors import AlertPolicy, BehaviorHistory, ProbeTrend
from riprap.report import apply_style, inline_data, save_figure
from riprap.types import Level

SWEPT = "default, bound swept"
AHEAD = {Level.WARNING: 5, Level.CRITICAL: 1}  # steps before the break, for each level
RATES = (0.01, 0.03, 0.05, 0.10, 0.20)  # of false alarms, in the table
END = 0.4  # rate of false alarms at the end of the figure, or a little beyond the last policy's
COLORS = {
    SWEPT: "#0072b2",
    "line through the last four": "#d55e00",
    "slope of the last four": "#cc79a7",
    "lost threshold margin": "#009e73",
    "lost mean margin": "#8a8a8a",
}
SHAPES = {"default": "circle", "quiet": "square", "early": "triangle-up", "before": "cross"}
Row = dict[str, Any]


def nearness(history: BehaviorHistory) -> float:
    """Return minus the steps to the break along the default's line, the nearest at most 0.

    A behavior that breaks before the next evaluation is announced at any bound.
    """
    detector = next(d for d in AlertPolicy.default().detectors if isinstance(d, ProbeTrend))
    if len(history.steps) < detector.evaluations:
        return -np.inf
    steps = detector.steps_to_break(history)
    return 0.0 if steps <= history.steps[-1] - history.steps[-2] else -steps


def largest(judged: Judged, rule: str, ahead: int) -> float:
    """Return the largest value of a rule's statistic, early enough before a break."""
    last = np.inf if judged.broke is None else judged.broke - ahead
    pairs = zip(judged.evaluated, judged.rivals.get(rule, []), strict=True)
    return max((value for step, value in pairs if step <= last), default=-np.inf)


def curve(judged: Sequence[Judged], rule: str, ahead: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of false alarms and of announced breaks, from the largest bound down."""
    values = [(own.broke is not None, largest(own, rule, ahead)) for own in judged]
    kept, broke = (
        np.array([value for b, value in values if b is which]) for which in (False, True)
    )
    bounds = np.unique(np.concatenate([kept, broke]))[::-1]
    bounds = np.concatenate([[np.inf], bounds[np.isfinite(bounds)]])
    shares = [(np.mean(kept >= bound), np.mean(broke >= bound)) for bound in bounds]
    false, announced = np.array(shares).T
    return false, announced


def announced_at(curve: tuple[np.ndarray, np.ndarray], rate: float) -> float:
    """Return the largest share of announced breaks with at most this rate of false alarms."""
    false, announced = curve
    return float(announced[false <= rate + 1e-9].max())


class Front:
    """All rules and policies on one corpus."""

    def __init__(self, traces: Sequence[Trace], policies: Sequence[AlertPolicy]) -> None:
        statistics = {SWEPT: nearness} | RIVALS
        self.judged = judge(traces, AlertPolicy.default(), statistics=statistics)
        self.curves = {
            (level, rule): curve(self.judged, rule, ahead)
            for level, ahead in AHEAD.items()
            for rule in statistics
        }
        self.points: list[Row] = []
        for policy in policies:
            own = self.judged if policy.name == "default" else judge(traces, policy, statistics={})
            for level, ahead in AHEAD.items():
                alarms, found = leads(own, lambda one, level=level: one.outcome.first.get(level))  # type: ignore[misc]
                announced = float(np.mean(np.array(found) >= ahead))
                point = {"policy": policy.name, "level": level, "false": float(np.mean(alarms))}
                self.points.append(point | {"announced": announced})

    def counts(self) -> str:
        """Return how many behavior-runs there are."""
        broke = sum(own.broke is not None for own in self.judged)
        return f"{broke} breaks, {len(self.judged) - broke} behavior-runs without"

    def table(self) -> list[dict[str, str]]:
        """Return the share of breaks announced by each rule at some rates of false alarms."""
        rows = []
        for (level, rule), own in self.curves.items():
            shares = {
                f"at {rate:.0%} false": markdown.number(announced_at(own, rate), 3)
                for rate in RATES
            }
            rows.append({"announced": _title(level), "rule": rule} | shares)
        return rows

    def better(self) -> list[dict[str, str]]:
        """Return the trivial rules that announce more breaks than a policy, as rarely false."""
        rows = []
        for point in self.points:
            for rule in RIVALS:
                share = announced_at(self.curves[point["level"], rule], point["false"])
                if share > point["announced"]:
                    rows.append(
                        {
                            "policy": point["policy"],
                            "level": str(point["level"]),
                            "false alarms": markdown.number(point["false"], 3),
                            "announced": markdown.number(point["announced"], 3),
                            "trivial rule": rule,
                            "announces": markdown.number(share, 3),
                        }
                    )
        return rows

    def figure(self, title: str) -> Any:
        """Plot the curves of the rules and the points of the policies, one panel a level."""
        panels = [self._panel(level) for level in AHEAD]
        chart = alt.hconcat(*panels, spacing=28)
        return apply_style(
            chart.properties(title=alt.TitleParams(title, subtitle=self.counts(), offset=14))
        )

    def _end(self) -> float:
        return max(END, *(point["false"] + 0.1 for point in self.points))

    def _panel(self, level: Level) -> Any:
        lines = [
            {"rule": rule, "false": false, "announced": announced, "order": at}
            for (of, rule), own in reversed(self.curves.items())  # the default's is on top
            if of == level
            for at, (false, announced) in enumerate(zip(*own, strict=True))
            if false <= self._end()
        ]
        points = [
            {key: point[key] for key in ("policy", "false", "announced")}
            for point in self.points
            if point["level"] == level
        ]
        x = alt.X(
            "false:Q",
            title="share of behaviors that never break, with an alert",
            scale=alt.Scale(domain=[0, self._end()], nice=False),
            axis=alt.Axis(format="%", titleLimit=360),
        )
        y = alt.Y(
            "announced:Q",
            title="share of breaks announced",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", titleLimit=300),
        )
        legend = alt.Legend(orient="bottom", columns=3, labelLimit=240)
        colors = alt.Scale(domain=list(COLORS), range=list(COLORS.values()))
        curves = (
            alt.Chart(inline_data(lines))
            .mark_line(interpolate="step-after", strokeWidth=1.8)
            .encode(
                x=x,
                y=y,
                color=alt.Color("rule:N", title=None, scale=colors, legend=legend),
                order="order:Q",
            )
        )
        shapes = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
        marks = (
            alt.Chart(inline_data(points))
            .mark_point(size=90, filled=True, color="#000000", opacity=1)
            .encode(x=x, y=y, shape=alt.Shape("policy:N", scale=shapes, legend=None))
        )
        names = marks.mark_text(align="left", dx=8, dy=8, color="#000000").encode(
            text="policy:N", shape=alt.Undefined
        )
        layers = curves + marks + names
        return layers.properties(width=380, height=300, title=_title(level))


def _title(level: Level) -> str:
    ahead = AHEAD[level]
    return f"{level}, ≥ {ahead} step{'s' if ahead > 1 else ''} before"


def write_front(
    name: str, traces: Sequence[Trace], policies: Sequence[AlertPolicy], out: Path, command: str
) -> str:
    """Write the figure of one corpus and its page, and return the page."""
    front = Front(traces, policies)
    figure = front.figure(f"Breaks announced against false alarms: {name}")
    for kind in ("svg", "png"):
        save_figure(figure, out / f"front-{name}.{kind}")
    better = front.better()
    text = (
        f"# Front of alerts: {name}\n\n`{command}`, commit {markdown.commit()}: "
        f"{len(traces)} runs, "
        f"{front.counts()}, without a budget. Points are the policies as they are; a curve is one "
        "rule, its bound swept on these same runs, which flatters it.\n\n"
        f"![front](front-{name}.svg)\n\nShare of breaks announced:\n\n"
        f"{markdown.table(front.table())}\n\n"
    )
    if better:
        text += f"Trivial rules that are better than a policy:\n\n{markdown.table(better)}\n"
    else:
        text += "No trivial rule is better than a policy at its own rate of false alarms.\n"
    (out / f"front-{name}.md").write_text(text, encoding="utf-8")
    return text
