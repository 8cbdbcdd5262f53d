"""How the cost of a monitor grows with parameters, probes, behaviors and tokens.

    python benchmarks/growth.py measure [--only NAME]     results/cost/growth.csv, one row a point
    python benchmarks/growth.py report                    its figure and README.md

The parts of a monitor are measured on world models and plain Llamas, all parameters trained or
adapters only. A cost model of few terms, none of them negative, is fitted to all points but those
of `HELD_OUT`, named before any fit, and predicts these. With it, on paper: models that do not fit
on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import altair as alt
import monitor_cost
import numpy as np
import pandas as pd
import torch
from cases import Case, LlamaSize, llama, world
from monitor_cost import measure
from rich.console import Console
from scipy.optimize import nnls
from suite import HERE, machine, peak_above_start

from riprap.monitor import Monitor
from riprap.report import apply_style, save_figure

FOLDER = HERE.parent / "results" / "cost"
DATA = FOLDER / "growth.csv"
HELD_OUT = "world, 25 M"
TOLERANCE = 0.15
FEW = LlamaSize(
    layers=4, vocabulary=512, rank=None, checkpointing=False, rows=8, width=32, n_behaviors=3,
    probes=12, probe_width=16,
)  # fmt: skip
LARGE = replace(FEW, hidden=576, feed_forward=1536, layers=30, vocabulary=49152, n_behaviors=2)


def points() -> dict[str, Case]:
    """Return the measured cases by name; the name begins with what is varied."""
    found = {
        "world, 0.1 M": world(64, 2, 3),
        "world, 0.8 M": world(160, 3, 3),
        "world, 5 M": world(320, 5, 3),
        HELD_OUT: world(640, 6, 3),
    }
    sizes = {
        "Llama, 0.4 M": replace(FEW, hidden=96, feed_forward=192),
        "Llama, 3 M": FEW,
        "Llama, 12 M": replace(FEW, hidden=512, feed_forward=1024),
        "Llama, 176 M": LARGE,
        "LoRA, 6 M": replace(FEW, layers=8, rank=8, width=96),
        "LoRA, 176 M": replace(LARGE, rank=32, n_behaviors=3),
    }
    for count in (6, 24, 48, 96):
        sizes[f"probes, {count}"] = replace(FEW, probes=count)
    for count in (1, 2, 5, 8):
        sizes[f"behaviors, {count}"] = replace(FEW, n_behaviors=count)
    for count in (4, 32, 64, 128):
        sizes[f"tokens a probe, {count}"] = replace(FEW, probe_width=count)
    return found | {name: llama(size) for name, size in sizes.items()}


@dataclass
class Point:
    """One measured case: its sizes, seconds of each part, and bytes.

    Attributes:
        trained: trained parameters, and `tensors` of them; `weights`: parameters in products.
        behaviors: number of behaviors.
        step_tokens, probe_tokens: tokens of a training step, and of a probe evaluation.
        layers, hidden: of the model.
        step, hooks, forward, refresh, start, reading: seconds.
        memory: bytes at the peak of a watched training, above those of a plain one.
    """

    name: str
    trained: float
    tensors: float
    weights: float
    behaviors: float
    step_tokens: float
    probe_tokens: float
    layers: float
    hidden: float
    step: float
    hooks: float
    forward: float
    refresh: float
    start: float
    reading: float
    memory: float


def measure_point(name: str, case: Case, times: int, rounds: int) -> Point:
    """Measure one case, `times` times over; medians."""
    memory = _peak(case, True) - _peak(case, False)  # first, while this process is small
    parts = measure(case, times, rounds)
    model = case.fresh(monitor_cost.SEED)[0]
    behaviors = len(case.behaviors(model))
    trained = [p for p in model.parameters() if p.requires_grad]
    config = model.config
    embedding = config.vocab_size * config.hidden_size
    seconds = {
        part: statistics.median(getattr(cost, f"{part}_seconds") for cost in parts.costs)
        for part in ("step", "forward", "refresh", "start", "reading")
    }
    return Point(
        name=name,
        trained=sum(p.numel() for p in trained),
        tensors=len(trained),
        weights=sum(p.numel() for p in model.parameters()) - embedding,
        behaviors=behaviors,
        step_tokens=parts.step_tokens,
        probe_tokens=parts.probe_tokens,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        hooks=statistics.median(parts.hooks),
        memory=max(memory, 0),
        **seconds,
    )


def _peak(case: Case, watched: bool) -> int:
    def train() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            model, optimizer, batches = case.fresh(monitor_cost.SEED)
            model.train()
            behaviors = case.behaviors(model)
            step = case.stepper(model, optimizer, batches)
            monitor = Monitor(behaviors) if watched else None
            if monitor is not None:
                monitor.begin(model, optimizer)
            for _ in range(3):
                step()
            if monitor is not None:
                monitor.end()

    return peak_above_start(train)


# The terms of each figure. A pass costs its products (tokens × weights), what is done to each
# activation (tokens × layers × hidden), and what each call costs whatever its size (layers).
PASS = {
    "tokens × weights": lambda p, tokens: tokens * p.weights,
    "tokens × layers × hidden": lambda p, tokens: tokens * p.layers * p.hidden,
    "layers": lambda p, tokens: p.layers,
}
TERMS = {
    "step": {
        **{name: (lambda p, f=term: f(p, p.step_tokens)) for name, term in PASS.items()},
        "trained parameters": lambda p: p.trained,
    },
    "hooks": {"1": lambda p: 1.0, "tensors": lambda p: p.tensors},
    "forward": {
        **{name: (lambda p, f=term: f(p, p.probe_tokens)) for name, term in PASS.items()},
        "parameters × behaviors": lambda p: p.trained * p.behaviors,
        "behaviors": lambda p: p.behaviors,
    },
    "refresh": {
        **{name: (lambda p, f=term: f(p, p.probe_tokens)) for name, term in PASS.items()},
        "layers × behaviors": lambda p: p.layers * p.behaviors,
        "parameters × behaviors": lambda p: p.trained * p.behaviors,
    },
    "start": {
        **{name: (lambda p, f=term: f(p, p.probe_tokens)) for name, term in PASS.items()},
        "layers × behaviors": lambda p: p.layers * p.behaviors,
        "parameters × behaviors": lambda p: p.trained * p.behaviors,
    },
    "reading": {
        "1": lambda p: 1.0,
        "tensors": lambda p: p.tensors,
        "parameters": lambda p: p.trained,
        "parameters × behaviors": lambda p: p.trained * p.behaviors,
    },
    "memory": {
        "1": lambda p: 1.0,
        "parameters × behaviors": lambda p: p.trained * p.behaviors,
        "parameters": lambda p: p.trained,
        "tokens × layers × hidden": lambda p: p.probe_tokens * p.layers * p.hidden,
    },
}


LEAST = {"hooks": 1e-4, "memory": 20e6}  # below, errors count as if the figure were so large


@dataclass
class CostModel:
    """Coefficients of each figure's terms, in seconds or bytes; none is negative."""

    coefficients: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def fit(cls, known: list[Point]) -> CostModel:
        """Fit to relative errors, so that small models count as much as large ones."""
        model = cls()
        for figure, terms in TERMS.items():
            values = np.array([max(getattr(p, figure), LEAST.get(figure, 0)) for p in known])
            table = np.array([[term(p) for term in terms.values()] for p in known])
            found = nnls(table / values[:, None], np.ones(len(known)))[0]
            model.coefficients[figure] = dict(zip(terms, found.tolist(), strict=True))
        return model

    def predict(self, figure: str, point: Point) -> float:
        """Return the predicted seconds, or bytes."""
        terms = TERMS[figure]
        return sum(self.coefficients[figure][name] * term(point) for name, term in terms.items())


def read() -> list[Point]:
    """Read all measured points."""
    with DATA.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [
        Point(row.pop("name"), **{key: float(value) for key, value in row.items()}) for row in rows
    ]


def write(measured: list[Point]) -> None:
    """Write all measured points."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with DATA.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(vars(measured[0])))
        writer.writeheader()
        writer.writerows(vars(one) for one in measured)
    (FOLDER / "machine.txt").write_text(machine() + "\n", encoding="utf-8")


AXES = {  # panel and size that is drawn, by the first word of a point's name
    "world": ("trained parameters", "trained"),
    "Llama": ("trained parameters", "trained"),
    "probes": ("probe tokens, by number of probes", "probe_tokens"),
    "tokens a probe": ("probe tokens, by length of a probe", "probe_tokens"),
    "behaviors": ("behaviors", "behaviors"),
}
ORDER = ["start", "refresh", "forward", "step", "reading", "hooks"]


def frame(measured: list[Point], model: CostModel) -> pd.DataFrame:
    """Return what is drawn: milliseconds of each part and megabytes, by what is varied."""
    base = next(p for p in measured if p.name == "Llama, 3 M")
    drawn = [(p, p.name.split(",")[0]) for p in measured]
    drawn += [(base, kind) for kind in ("probes", "tokens a probe", "behaviors")]
    rows = []
    for point, kind in drawn:
        if kind not in AXES:
            continue
        title, attribute = AXES[kind]
        for part in (*ORDER, "memory"):
            scale = 1e-6 if part == "memory" else 1e3
            rows.append(
                {
                    "panel": title,
                    "size": getattr(point, attribute),
                    "part": part,
                    "kind": "world model" if kind == "world" else "plain Llama",
                    "measured": scale * getattr(point, part),
                    "model": scale * model.predict(part, point),
                    "point": "held out" if point.name == HELD_OUT else "in the fit",
                }
            )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame) -> Path:
    """Draw points as measured, and lines of the fitted model."""
    seconds = table[table.part != "memory"]
    panels = [_panel(own, str(title), "milliseconds") for title, own in _by_panel(seconds)]
    memory = table[(table.part == "memory") & (table.panel == "trained parameters")]
    panels.insert(1, _panel(memory, "trained parameters", "peak memory above plain training, MB"))
    return save_figure(
        apply_style(alt.concat(*panels, columns=2, spacing=30)), FOLDER / "growth.png"
    )


def _by_panel(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(title), own) for title, own in table.groupby("panel", sort=False)]


def _ticks(low: float, high: float, steps: Sequence[int]) -> list[float]:
    found = [step * 10.0**power for power in range(-2, 10) for step in steps]
    return [value for value in found if low <= value <= high]


def _panel(own: pd.DataFrame, x_title: str, y_title: str) -> alt.LayerChart:
    """One panel, with logarithmic axes."""
    low, high = own["size"].min() / 1.3, own["size"].max() * 1.3
    ticks = [1, 2, 3, 5, 8] if x_title == "behaviors" else _ticks(low, high, (1, 3))
    x = alt.X(
        "size:Q",
        title=x_title,
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=ticks, format="~s", grid=False, titleLimit=330),
    )
    both = own[["measured", "model"]].to_numpy()
    low, high = max(both[both > 0].min(), 0.1) / 1.5, both.max() * 1.5
    scale = alt.Scale(type="log", domain=[low, high], nice=False, clamp=True)
    decades = alt.Axis(values=_ticks(low, high, (1,)), format="~s", titleLimit=300)
    legend = alt.Legend(symbolOpacity=1)
    color = alt.Color("part:N", title=None, sort=[*ORDER, "memory"], legend=legend)
    base = alt.Chart(own).encode(x=x, color=color)
    line = base.mark_line(opacity=0.6).encode(
        y=alt.Y("model:Q", title=y_title, scale=scale, axis=decades),
        strokeDash=alt.StrokeDash("kind:N", title="cost model of"),
    )
    marks = base.mark_point(filled=True, size=55, opacity=1).encode(
        y=alt.Y("measured:Q", title=y_title, scale=scale, axis=decades),
        shape=alt.Shape("point:N", title="measured"),
    )
    return alt.layer(line, marks).properties(width=330, height=240)


def main() -> None:
    """Measure, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["measure", "report"])
    parser.add_argument("--only", nargs="+", default=[], help="names that begin so")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.action == "report":
        import growth_report

        growth_report.report()
        return
    console = Console(stderr=True)
    measured = {p.name: p for p in read()} if asked.only and DATA.exists() else {}
    for name, case in points().items():
        if asked.only and not any(name.startswith(start) for start in asked.only):
            continue
        console.print(name, highlight=False)
        large = "176 M" in name
        times, rounds = (1, 1) if large else (asked.times, asked.rounds)
        measured[name] = measure_point(name, case, times, rounds)
        write(list(measured.values()))


if __name__ == "__main__":
    main()
