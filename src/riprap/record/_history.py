"""Readings as a table."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from riprap.types import Reading

COLUMNS = ["step", "behavior", "signal", "value", "state", "unit", "layer", "detail"]


def readings_table(readings: Iterable[Reading]) -> pd.DataFrame:
    """One row a reading; `value` is NaN where `state` is not MEASURED."""
    rows = [[getattr(reading, column) for column in COLUMNS] for reading in readings]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["value"] = pd.to_numeric(frame["value"]).astype(float)
    frame["state"] = frame["state"].astype(str)
    return frame
