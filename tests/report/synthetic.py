"""Synthetic records for the tests of the report, as a monitor writes them, without a model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from riprap.record import Writer
from riprap.types import Alert, Forecast, Level, Reading, ReadingStatus

HORIZON = 50
LAYERS = ("model.layers.9", "model.layers.10")


def visits_until(steps: int, every: int = 10) -> list[int]:
    """Evaluated steps: dense at the start, sparse later, as in a monitor."""
    found, step = [], 0
    while step < steps:
        found.append(step)
        step += min(max(step // 4, 1), every)
    return [*found, steps]


class Scene:
    """Writes one behavior after another to a record."""

    def __init__(
        self,
        run: Path | None,
        names: list[str],
        steps: int = 120,
        texts: list[str] | None = None,
    ) -> None:
        self.writer = Writer(run)
        self.steps = steps
        self.random = np.random.default_rng(0)
        facts = {"floor": 0.9, "contrast": None} | ({} if texts is None else {"texts": texts})
        self.writer.write_meta(
            behaviors=[{"name": name} | facts for name in names],
            protocol={"name": "default", "detectors": [{"kind": "forecast", "horizon": HORIZON}]},
            protocol_hash="sha256:0123456789abcdef",
            versions={"python": "3.11.7", "torch": "2.13.0"},
            seeds={"torch": 7},
            started="2026-11-22T21:00:00+00:00",
            notes={"task": "toy world under C", "config": {"lr": 1e-3, "model": "tiny"}},
        )

    def fading(
        self, name: str, start: float = 6.0, rate: float = 0.05, level: float = -4.0
    ) -> None:
        """A behavior whose mean margin decays from `start` to `level`."""
        offsets = self.random.normal(0, 1.0, 120)

        def mean(step: float) -> float:
            return level + (start - level) * math.exp(-rate * step)

        for step in range(1, self.steps + 1):
            change = mean(step) - mean(step - 1) + self.random.normal(0, 0.02)
            self.read(step, name, "interference", change)
            self.read(step, name, "cosine_margin", -0.1 * math.sin(step / 9))
        raised: set[Level] = set()
        for step in visits_until(self.steps):
            margins = (mean(step) + offsets).astype(np.float32)
            self.visit(step, name, margins)
            low = float(np.sort(margins)[12])
            self.read(step, name, "margin_low", low)
            slope = rate * (mean(step) - level)
            self.forecast(step, name, low, slope, raised)
            for depth, layer in enumerate(LAYERS):
                self.read(step, name, "projection_ratio", math.exp(-0.01 * step * depth), layer)
                self.read(step, name, "drift_mean", 0.002 * step * (1 + depth), layer)

    def visit(self, step: int, name: str, margins: np.ndarray) -> None:
        self.writer.add_margins(step, name, margins)
        self.read(step, name, "margin", float(margins.mean()), unit="logits")
        self.read(step, name, "score", float((margins > 0).mean()), unit="share")

    def forecast(self, step: int, name: str, low: float, slope: float, raised: set[Level]) -> None:
        if step < 3:
            return
        median = 0.0 if low < 0 else low / slope if slope > 1e-3 else math.inf
        said = Forecast(median, median * 0.75, median * 1.4, HORIZON)
        for part in ("median", "low", "high"):
            value, signal = getattr(said, part), f"forecast_{part}"
            if value <= HORIZON:
                self.read(step, name, signal, value)
            else:
                self.lack(step, name, signal, "no break within the horizon")
        level = Level.CRITICAL if said.predicts_break else None
        level = level or (Level.WARNING if said.median <= HORIZON else None)
        if level and level not in raised:
            raised.add(level)
            cause = Reading.of(step, name, "margin_low", low)
            text = f"expected to reach its floor in {median:.0f} steps"
            self.writer.add_alert(Alert(step, name, level, "forecast", text, (cause,), said))

    def read(
        self, step: int, name: str, signal: str, value: float, layer: str = "", unit: str = ""
    ) -> None:
        self.writer.add_readings([Reading.of(step, name, signal, value, unit, layer)])

    def lack(
        self, step: int, name: str, signal: str, why: str, state: str = "INSUFFICIENT"
    ) -> None:
        self.writer.add_readings(
            [Reading(step, name, signal, state=ReadingStatus(state), detail=why)]
        )

    def whole_run(self) -> None:
        """Readings of the run as a whole."""
        for step in range(1, self.steps + 1):
            self.read(step, "", "norm_gradient", 1 / math.sqrt(step))
            self.read(step, "", "norm_update", 0.1 / step)


def typical(run: Path | None, steps: int = 120) -> Scene:
    """Three behaviors: one breaks with warning, one levels off above 0, one is under its floor."""
    scene = Scene(run, ["refusal", "arithmetic", "general knowledge"], steps)
    scene.fading("refusal", 6.0, 0.05, -4.0)
    scene.fading("arithmetic", 9.0, 0.01, 4.0)
    scene.fading("general knowledge", 0.5, 0.01, 0.0)
    scene.whole_run()
    why = "no stack of layers was found in the model: name one, e.g. Monitor(..., layer='blocks.1')"
    scene.lack(0, "refusal", "energy_ratio", why, "NOT_RUN")
    for step in visits_until(steps):
        scene.read(step, "", "subspace_overlap:refusal|arithmetic", 0.4, LAYERS[0])
    scene.read(0, "", "subspace_overlap_chance", 0.25, LAYERS[0])
    scene.writer.flush()
    return scene
