"""What the page shows of a run: all of it, or what is new since a position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from riprap._text import shorten
from riprap.conclusion import Conclusion, conclude
from riprap.errors import RecordError
from riprap.record import Instruction, Reader, Window, instructions_of, position

STRETCHES = 250  # of steps, over the whole run; each has up to four points of a line
LOW, HIGH = 0.10, 0.90  # quantiles of the margins at the edges of the band
LINES = ("score", "margin", "margin_low")
FORECASTS = ("forecast_median", "forecast_low", "forecast_high", "forecast_probability")
INTERFERENCE = ("interference", "interference_layer")  # of the whole model, and of its layers
TRAINING_LINES = ("loss", "learning_rate", "reward")
MAX_INSTRUCTIONS = 50  # of a table
MAX_CYCLES = 100  # of the figure of rewards, the newest ones
MAX_ALERTS = 1000  # of one view; the page says how many there are


@contextmanager
def opened(file: Path) -> Iterator[Reader]:
    """Open a record for reading; content that no writer wrote is a `RecordError`."""
    with Reader(file) as reader:
        try:
            yield reader
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise RecordError(f"{file} is damaged: {error}") from error


def whole(reader: Reader, until: Mapping[str, int]) -> dict[str, Any]:
    """Return everything up to a position: facts about the run, and its thinned lines."""
    meta, own = reader.meta(), reader.monitored()
    notes = meta.get("notes")
    task = meta.get("task") or (notes.get("task") if isinstance(notes, dict) else None)
    window = Window(reader, dict.fromkeys(until, 0), until)
    size = max(1, math.ceil((window.last_step() + 1) / STRETCHES))
    facts = {
        "title": shorten(str(task)) if task else "",
        "started": shorten(str(meta.get("started") or "")),
        "behaviors": [
            {"name": shorten(item["name"]), "floor": float(item["floor"])} for item in own
        ],
        "size": size,
    }
    return facts | new_rows(reader, dict.fromkeys(until, 0), until, size, own)


def new_rows(
    reader: Reader,
    after: Mapping[str, int],
    until: Mapping[str, int],
    size: int,
    behaviors: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the rows between two positions add to the page.

    Args:
        size: number of steps of a stretch, of which the extremes are kept.
        behaviors: those of `Reader.monitored`; the page knows them by their numbers.
    """
    window = Window(reader, after, until, size)
    places = {own["name"]: place for place, own in enumerate(behaviors)}
    alerts = [own | {"behavior": places.get(own["behavior"], -1)} for own in window.alerts()]
    return {
        "last_step": window.last_step(),
        "lines": [
            {"behavior": places[name], "signal": signal, **_columns(values)}
            for (name, signal), values in window.readings(LINES).items()
            if name in places
        ],
        "layers": [
            {"behavior": places[name], "layer": shorten(layer), **_columns(values)}
            for (name, _, layer), values in window.sums(INTERFERENCE).items()
            if name in places
        ],
        "training": {name: _columns(v) for name, v in window.training(TRAINING_LINES).items()},
        "bands": _bands(window, places),
        "forecasts": _forecasts(window, places),
        "alerts": alerts[:MAX_ALERTS],
        "n_alerts": len(alerts),
        "actions": [own | {"guard": shorten(own["guard"])} for own in window.actions()],
    }


def conclusion_of(reader: Reader) -> dict[str, Any]:
    """Return the conclusion of the run so far, and the steps at which alerts were withdrawn."""
    found: Conclusion = conclude(reader)
    outcomes = [own | {"name": name} for name, own in found.to_dict()["behaviors"].items()]
    numbers = {shorten(name): shorten(text) for name, text in found.numbers.items()}
    until = position(reader)
    ids = [own["id"] for own in Window(reader, dict.fromkeys(until, 0), until).alerts()]
    ended = reader.withdrawals().items()
    withdrawn = {ids[place]: step for place, step in ended if place < len(ids)}
    return {
        "line": found.line,
        "weights": shorten(found.weights, 500),
        "numbers": numbers,
        "advice": shorten(found.advice, 500),
        "limits": found.limits,
        "finished": found.finished,
        "outcomes": outcomes,
        "withdrawn": withdrawn,
        "instructions": _instructions(reader),
    }


def _instructions(reader: Reader) -> dict[str, Any] | None:
    """Return the instructions of fast–slow training as rows; None: there were no cycles."""
    found = instructions_of(reader.events())
    if found is None:
        return None
    others = [number for number in reversed(found.evaluated) if number not in found.population]
    newest = found.rejected[: -MAX_INSTRUCTIONS - 1 : -1]
    shown = range(max(1, len(found.steps) - MAX_CYCLES + 1), len(found.steps) + 1)
    return {
        "sentence": found.sentence,
        "cycles": [shown.start, len(found.steps)],
        "rewards": [
            {
                "id": own.id,
                "cycles": [cycle for cycle in own.rewards if cycle in shown],
                "values": [
                    _rounded_or_none(value)
                    for cycle, value in own.rewards.items()
                    if cycle in shown
                ],
                "kept": [cycle for cycle in own.kept if cycle in shown],
            }
            for own in found.evaluated.values()
            if max(own.rewards) in shown
        ],
        "population": [_instruction(found.evaluated[number]) for number in found.population],
        "dropped": [_instruction(found.evaluated[number]) for number in others[:MAX_INSTRUCTIONS]],
        "rejected": [
            {
                "cycle": own.cycle,
                "text": own.text,
                "parent": own.parent,
                "reward": _rounded_or_none(own.reward),
                "before": _rounded_or_none(own.parent_reward),
            }
            for own in newest
        ],
    }


def _instruction(own: Instruction) -> dict[str, Any]:
    return {
        "id": own.id,
        "text": own.text,
        "parent": own.parent,
        "reward": _rounded_or_none(own.reward),
        "cycles": len(own.rewards),
    }


def _rounded_or_none(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _columns(values: Mapping[int, float]) -> dict[str, list[Any]]:
    return {"steps": list(values), "values": [_rounded(value) for value in values.values()]}


def _rounded(value: float) -> float | None:
    """Round to the digits that a figure can show; None for what JSON cannot hold."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _bands(window: Window, places: Mapping[str, int]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for name, step, margins in window.margins():
        if name not in places or not len(margins) or not np.isfinite(margins).all():
            continue
        own = found.setdefault(
            places[name], {"behavior": places[name], "steps": [], "low": [], "high": []}
        )
        low, high = np.quantile(margins.astype(float), [LOW, HIGH]).tolist()
        own["steps"].append(step)
        own["low"].append(_rounded(low))
        own["high"].append(_rounded(high))
    return list(found.values())


def _forecasts(window: Window, places: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the forecast of the last evaluation in the window, by behavior."""
    lines = Window(window.reader, window.after, window.until, 2**62).readings(
        ("margin_low", *FORECASTS)
    )
    found = []
    for name, place in places.items():
        low = lines.get((name, "margin_low"))
        if not low:
            continue
        step = max(low)
        numbers = {key: lines.get((name, key), {}).get(step) for key in FORECASTS}
        found.append({"behavior": place, "step": step, "margin": _rounded(low[step])} | numbers)
    return found
