"""Time, memory and points of the report of a long run, and the cost of writing its record.

    python benchmarks/report_cost.py [--steps 100000] [--per-step] [--out FOLDER]

The record is written by the `Writer` with the readings of a run: four behaviors of 24 probes,
interference at every step, an evaluation every 20 steps; `--per-step` adds the cosines and norms of
`signals.per_step()`. The report is made in a process of its
own. Its memory is the peak of the resident set (VmHWM) above the set after the import of
`riprap.report`; seconds are processor time.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from riprap.record import Writer
from riprap.types import Alert, Forecast, Level, Reading, ReadingStatus

BEHAVIORS = ("refusal", "adding", "polite", "facts")
PROBES, EVERY, HORIZON = 24, 20, 50
LAYER = "model.layers.10"
FEATURES = ("projection", "projection_ratio", "energy_ratio", "drift_mean", "drift_direction")
MEASURE = """
import json, sys, time
from pathlib import Path
import riprap.report
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
Path("/proc/self/clear_refs").write_text("5")
before, begin = status("VmRSS"), time.process_time()
riprap.report.write_report(sys.argv[1], sys.argv[2])
print(json.dumps({"seconds": time.process_time() - begin, "megabytes": status("VmHWM") - before}))
"""


def main() -> None:
    """Write the record, make the report, and print what both cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--per-step", action="store_true", help="cosines and norms as well")
    parser.add_argument("--out", type=Path, help="folder for the record and the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        folder = options.out or Path(own)
        rows, seconds = write_record(folder / "run", options.steps, options.per_step)
        size = (folder / "run" / "record.sqlite").stat().st_size
        print(
            f"record: {options.steps:,} steps, {rows:,} rows; {1e6 * seconds / rows:.1f} µs a row, "
            f"{1e6 * seconds / options.steps:.0f} a step (processor time); "
            f"{size / rows:.0f} bytes a row, {size / options.steps:.0f} a step, {size / 1e6:.0f} MB"
        )
        page = folder / "report.html"
        command = [sys.executable, "-c", MEASURE, str(folder / "run"), str(page)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        cost = json.loads(done.stdout.splitlines()[-1])
        print(
            f"report: {cost['seconds']:.1f} s of processor time, {cost['megabytes']:.0f} MB above "
            f"the import, {points_drawn(page):,} data rows in the figures, "
            f"{page.stat().st_size / 1e6:.1f} MB page"
        )


def write_record(folder: Path, steps: int, per_step: bool = False) -> tuple[int, float]:
    """Write the record of a run; return its rows, and the seconds spent in the `Writer`."""
    random = np.random.default_rng(0)
    writer = Writer(folder)
    writer.write_meta(
        id="benchmark",
        behaviors=[{"name": name, "floor": 0.9} for name in BEHAVIORS],
        protocol={"name": "default"},
        protocol_hash="none",
        started="2026-11-29T12:00:00+00:00",
        notes={"task": f"a run of {steps:,} steps"},
    )
    offsets = {name: np.abs(random.normal(0, 1.5, PROBES)) for name in BEHAVIORS}
    rows, seconds = 0, 0.0
    for step in range(steps + 1):
        readings: list[Reading] = []
        if step:
            for name in BEHAVIORS:
                change = mean_margin(name, step, steps) - mean_margin(name, step - 1, steps)
                value = change + random.normal(0, 0.01)
                readings.append(Reading.of(step, name, "interference", value, "margin"))
                if per_step:
                    cosine = float(random.normal(0, 0.1))
                    readings.append(Reading.of(step, name, "cosine_margin", cosine))
            for norm in ("norm_gradient", "norm_update") if per_step else ():
                readings.append(Reading.of(step, "", norm, abs(float(random.normal(1, 0.1)))))
        margins = {}
        if step % EVERY == 0 or step < EVERY:
            for name in BEHAVIORS:
                margins[name] = (
                    mean_margin(name, step, steps) + random.normal(0, 0.05) + offsets[name]
                )
                readings += readings_of_evaluation(step, name, margins[name], random)
            readings.append(Reading.of(step, "", "tensors_moved", 210.0))
        begin = time.process_time()
        for name, values in margins.items():
            writer.add_margins(step, name, values)
        writer.add_readings(readings)
        seconds += time.process_time() - begin
        rows += len(readings) + len(margins)
        if step == int(0.59 * steps):
            forecast = Forecast(35.0, 20.0, math.inf, HORIZON)
            text = "score expected to fall under its floor 0.90 in 35 steps"
            cause = (Reading.of(step, "refusal", "margin_low", 0.2),)
            level = Level.CRITICAL
            writer.add_alert(Alert(step, "refusal", level, "forecast", text, cause, forecast))
    begin = time.process_time()
    writer.add_event(steps, "ended", ended="2026-11-30T12:00:00+00:00")
    writer.close()
    return rows, seconds + time.process_time() - begin


def mean_margin(name: str, step: int, steps: int) -> float:
    """Lowest margin of a behavior: one breaks, one fades, one has a spike, one stays."""
    done = step / steps
    if name == "refusal":
        return 5 - 8 / (1 + math.exp(-60 * (done - 0.6)))
    if name == "adding":
        return 2 + 6 * math.exp(-4 * done)
    if name == "polite":
        return 3.0 - 1.5 * (abs(step - 0.4 * steps) < EVERY)
    return 4.0 + 0.3 * math.sin(12 * done)


def readings_of_evaluation(
    step: int, name: str, margins: np.ndarray, random: np.random.Generator
) -> list[Reading]:
    """Return what a monitor with the default signals reads of a behavior."""
    low = float(np.sort(margins)[2])
    readings = [
        Reading.of(step, name, "margin", float(margins.mean()), "logits"),
        Reading.of(step, name, "margin_low", low, "logits"),
        Reading.of(step, name, "score", float((margins > 0).mean()), "share"),
    ]
    for part, factor in (("median", 1.0), ("low", 0.6), ("high", 2.0)):
        value, signal = factor * 30 * low, f"forecast_{part}"
        if 0 <= value <= HORIZON:
            readings.append(Reading.of(step, name, signal, value, "steps"))
        else:
            state, why = ReadingStatus.INSUFFICIENT, "not within the horizon"
            readings.append(Reading(step, name, signal, None, "steps", state, detail=why))
    for feature in FEATURES:
        value = 1 + float(random.normal(0, 0.02))
        readings.append(Reading.of(step, name, feature, value, "", LAYER))
    readings += [
        Reading.of(step, name, signal, abs(float(random.normal(0, 0.1))), "nats")
        for signal in ("kl_start", "kl_from_start")
    ]
    return readings


def points_drawn(page: Path) -> int:
    """Count the data rows of all figures of a page."""
    text = page.read_text(encoding="utf-8")
    match = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)
    figures = [] if match is None else json.loads(match[1])
    datasets = [rows for figure in figures for rows in figure["datasets"].values()]
    return sum(len(json.loads(rows)) for rows in datasets)


if __name__ == "__main__":
    main()
