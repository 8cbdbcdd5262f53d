"""The page of the bench: tables and a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.guards_bench.analysis import (
    TIME,
    Point,
    Row,
    Standing,
    best_values,
    fronts,
    half_width,
    rows,
    searched_grounds,
    standings,
)
from experiments.guards_bench.grounds import GROUNDS
from experiments.guards_bench.methods import AUTO, METHODS, MIXING, NONE
from experiments.guards_bench.plan import Plan
from experiments.guards_bench.simulate import Run
from experiments.harness import markdown
from experiments.harness.markdown import NOTHING, commit, count_of_total, fill, number
from riprap.report import save_figure

TEMPLATE = Path(__file__).with_name("page.md")
PANELS = 3  # in a row of the figure
# Accuracy over all tasks of a sequence, from the references that are named.
REFERENCES = {
    "permuted_digits": (
        "Reference implementations on the same data and sizes, mean accuracy over all five tasks: "
        "GEM, PCGrad and UPGrad of losses with fresh gradients 0.82 to 0.87, replay 0.83, KL on "
        "the memory 0.90, DER++ 0.92 (`../shared/faults.md`, G1 and G5)."
    )
}


def write_page(runs: Sequence[Run], plan: Plan, part: str, out: Path, command: str) -> Path:
    """Write the page and its figure; return the page."""
    own = rows(runs, plan)
    save_figure(figure(own), out / f"{part}.png")
    page = out / f"{part}.md"
    page.write_text(_text(own, plan, part, command), encoding="utf-8")
    return page


def _text(own: Sequence[Row], plan: Plan, part: str, command: str) -> str:
    seeds = sorted({run.seed for row in own for run in row.runs})
    together = fronts(own)
    grounds = [g for g in plan.grounds(part) if any(row.ground == g for row in own)]
    known, timed = standings(own), standings(own, TIME)
    missing = [g for g in plan.grounds(part) if g not in grounds]
    return fill(
        TEMPLATE,
        Part=part.capitalize(),
        part=part,
        plan=plan,
        made=f"Made by `{command}` at commit `{commit()}`; seeds {', '.join(map(str, seeds))}.",
        summary=_summary(own, grounds),
        standing=[_standing(one) for one in known],
        missing=", ".join(missing) or "none",
        verdict=_verdict(known, timed, own),
        knobs=_knobs(own, together),
        grounds="\n\n".join(_ground(own, g, plan) for g in grounds),
    )


def _summary(own: Sequence[Row], grounds: Sequence[str]) -> list[dict[str, str]]:
    """Return hypervolumes by method and ground, best mean rank first.

    On each ground the seeds that all ranked methods ran. Ranks are those among the methods that ran
    on every ground where all methods may run.
    """
    ranked = [g for g in grounds if not GROUNDS[g].methods] or list(grounds)
    found: dict[str, dict[str, Row]] = {}
    for row in own:
        if row.is_default:
            found.setdefault(row.method, {})[row.ground] = row
    everywhere = [here for here in found.values() if here.keys() >= set(ranked)]
    shared = {g: set.intersection(*(h[g].seeds for h in everywhere if g in h)) for g in grounds}
    areas = {
        name: {g: row.area(seeds=shared[g] & row.seeds or None) for g, row in here.items()}
        for name, here in found.items()
    }
    complete = {name: a for name, a in areas.items() if a.keys() >= set(ranked)}

    def rank(name: str) -> float:
        if name not in complete:
            return float("nan")
        better = [sum(o[g] > areas[name][g] for o in complete.values()) for g in ranked]
        return 1 + float(np.mean(better))

    def order(name: str) -> tuple[bool, float, float]:
        known = name in complete
        return not known, rank(name) if known else 0, -float(np.mean([*areas[name].values()]))

    return [
        {"method": name, "mean rank": number(rank(name), 1)}
        | {g: number(areas[name].get(g), 2) for g in grounds}
        for name in sorted(areas, key=order)
    ]


def _standing(one: Standing) -> dict[str, str]:
    beaten = [name for name, over in one.over.items() if not over]
    return {
        "ground": one.ground,
        "hypervolume": number(one.area, 2),
        "rank": f"{one.rank} of {one.others + 1}",
        "ahead of it": ", ".join(one.ahead[:5]) or NOTHING,
        "mixing at or above it": ", ".join(beaten) or NOTHING,
        "new task": number(one.learned, 2),
        "what the run says": one.reason or NOTHING,
    }


def _verdict(known: Sequence[Standing], timed: Sequence[Standing], own: Sequence[Row]) -> str:
    """Return what the bench must show, in sentences.

    Args:
        known, timed: AutoGuard's standings at equal work and at equal time.
    """
    known_rows = [row for row in own if row.is_default]
    kept, new = (
        Counter(row.method for row in known_rows if set(row.below) & names)
        for names in ({"worst", "mean"}, {"new"})
    )
    lines = [
        f"- Defaults that keep less than no guard, beyond noise: {_counts(kept)}.",
        f"- Methods that learn less than no guard, beyond noise: {_counts(new)}.",
    ]
    for what, ones in (("work", known), ("time", timed)):
        best = count_of_total(sum(one.rank <= 3 for one in ones), len(ones))
        lines.append(f"- At equal {what} AutoGuard is among the best three on {best} grounds.")
        shares = []
        for name in MIXING:
            better = [one.over[name] for one in ones if name in one.over]
            shares.append(f"{name} on {count_of_total(sum(better), len(better))}")
        every = [all(one.over.values()) for one in ones if one.over]
        shares.append(f"every share on {count_of_total(sum(every), len(every))}")
        lines.append(f"- At equal {what} it is above {', '.join(shares)}.")
    auto = [row for row in known_rows if row.method == AUTO and row.end]
    for what, costs in (
        ("work", [np.mean([run.work for run in row.runs]) for row in auto]),
        ("time", [np.mean(row.time) for row in auto]),
    ):
        if costs:
            low, high = number(min(costs), 2), number(max(costs), 2)
            lines.append(f"- AutoGuard's {what} is {low} to {high} times the plain run's.")
    return "\n".join(lines)


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{name} ({n} grounds)" for name, n in found.items()) or "none"


def _knobs(own: Sequence[Row], together: dict[tuple[str, str], float]) -> list[dict[str, str]]:
    """Return the search: each method's values, the best one, and all of them together."""
    lines = []
    for name, best in best_values(own).items():
        grounds = searched_grounds(own, name)
        areas = {
            value: [
                row.area()
                for row in own
                if (row.method, row.value) == (name, value) and row.ground in grounds
            ]
            for value in METHODS[name].values
        }
        joint = [together[ground, name] for ground in grounds if (ground, name) in together]
        lines.append(
            {
                "method": name,
                "knob": METHODS[name].knob,
                "values": ", ".join(f"{v:g}: {number(np.mean(a), 2)}" for v, a in areas.items()),
                "grounds": ", ".join(grounds),
                "best": f"{best:g}" + (" (default)" if best == METHODS[name].values[0] else ""),
                "all three together": number(np.mean(joint), 2),
            }
        )
    return lines


def _ground(own: Sequence[Row], ground: str, plan: Plan) -> str:
    """Return the section of a ground."""
    here = [row for row in own if row.ground == ground]
    here.sort(key=lambda row: (row.method != NONE, row.method not in MIXING, -row.area()))
    failed = {row.label: row.failed[0] for row in here if row.failed}
    parts = [
        f"### {ground}",
        f"{GROUNDS[ground].about[:1].upper()}{GROUNDS[ground].about[1:]}.",
        f"Only these methods run here: {', '.join(few)}."
        if (few := GROUNDS[ground].methods)
        else "",
        markdown.table([_cells(row) for row in here]),
        REFERENCES.get(ground, ""),
        "\n".join(f"- {label}: {markdown.cell(text)}" for label, text in failed.items()),
    ]
    return "\n\n".join(filter(None, parts))


def _cells(row: Row) -> dict[str, str]:
    def of(get: Callable[[Point], float], points: Sequence[Point], digits: int = 2) -> str:
        return mean_interval([get(point) for point in points], digits)

    def mean(name: str, digits: int = 2) -> str:
        return mean_interval([float(getattr(run, name)) for run in row.runs], digits)

    return {
        "method": f"**{row.label}**" if row.method == AUTO else row.label,
        "worst old": of(lambda p: p.worst, row.end),
        "mean old": of(lambda p: p.mean, row.end),
        "new": of(lambda p: p.new, row.end),
        "area": of(lambda p: p.area, row.end),
        "at equal work": of(lambda p: p.area, row.at_work),
        "at equal time": of(lambda p: p.area, row.at_time),
        "replayed": mean("replayed", 0),
        "acted": mean("acted"),
        "work": mean("work"),
        "time": mean_interval(row.time, 1),
        "kept": mean("kept", 1),
        "all tasks": mean_interval([_all_tasks(run) for run in row.runs]),
        "below none": ", ".join(row.below) or ("no" if row.end else NOTHING),
        "seeds": str(len(row.runs)),
        "run at": ", ".join(dict.fromkeys(run.commit or "earlier" for run in row.runs)) or NOTHING,
    }


def _all_tasks(run: Run) -> float:
    """Return the mean accuracy over old and new tasks, as papers on sequences report it."""
    last = run.looks[-1]
    return float(np.mean([*last.old.values(), last.new]))


def mean_interval(values: Sequence[float], digits: int = 2) -> str:
    """Format the mean, with half of its 95 % interval where there are several values."""
    if not values:
        return NOTHING
    width = half_width(values)
    return number(np.mean(values), digits) + (
        "" if np.isnan(width) else f" ± {number(width, digits)}"
    )


def _kind(row: Row) -> str:
    if row.method in MIXING:
        return "mixing"
    reads = METHODS[row.method].reads
    return {AUTO: "AutoGuard", NONE: "no guard"}.get(row.method, f"guard that reads {reads}")


def figure(own: Sequence[Row]) -> Any:
    """Plot the worst old score against the new task's, a panel a ground; defaults only."""
    points = [
        {
            "ground": row.ground,
            "method": row.method,
            "kind": _kind(row),
            "worst": float(np.mean([point.worst for point in row.at_work])),
            "new": float(np.mean([point.new for point in row.at_work])),
        }
        for row in own
        if row.is_default and row.at_work
    ]
    frame = pd.DataFrame(points)
    panels = [_panel(frame[frame.ground == g], g) for g in dict.fromkeys(frame.ground)]
    lines = [alt.hconcat(*panels[at : at + PANELS]) for at in range(0, len(panels), PANELS)]
    return alt.vconcat(*lines)


def _panel(frame: pd.DataFrame, ground: str) -> Any:
    scale = alt.Scale(zero=False, padding=12)
    base = alt.Chart(frame, title=ground).encode(
        x=alt.X("new:Q", scale=scale, title="new task, share of plain"),
        y=alt.Y("worst:Q", scale=scale, title="worst old score"),
        color=alt.Color("kind:N", scale=alt.Scale(scheme="dark2"), title=None),
    )
    names = base.mark_text(align="right", dx=-6, fontSize=8).encode(text="method:N")
    return alt.layer(base.mark_point(filled=True, size=45), names).properties(width=300, height=260)
