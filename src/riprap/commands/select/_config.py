"""Configuration of `riprap select`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from riprap._config import StrictModel
from riprap.commands._data import DataConfig


class SelectConfig(StrictModel):
    """A data set, the model to be trained on it, and the rows to select.

    Attributes:
        data: as in `WatchConfig`.
        model: as in `WatchConfig`.
        out: output folder; an interrupted run is resumed in it.
        strategy: a name among `STRATEGIES` of `_choose.py`; a control may name the strategy that it
            matches: `random_by_length:high`.
        ratio: fraction of the usable rows to select, rounded down, at least one row.
        behaviors: probe sets, or files of your own, whose harm is predicted; only probes that the
            model passes are used.
        refusal_prefixes: first words of the model's refusals; empty: those of the probe sets.
        lora_rank: rank of the adapter whose gradients are computed; 0: all parameters.
        batch_size: rows per forward pass.
        max_length: tokens per row; longer rows are truncated, as in training.
        id, category: fields that identify a row and name its category.
    """

    renamed: ClassVar[dict[str, str]] = {"openers": "refusal_prefixes", "batch": "batch_size"}

    data: DataConfig
    model: str
    out: Path
    strategy: str = "moderate"
    ratio: float = Field(default=0.2, gt=0, le=1)
    behaviors: tuple[str, ...] = ()
    refusal_prefixes: tuple[str, ...] = ()
    lora_rank: int = Field(default=32, ge=0)
    batch_size: int = Field(default=8, ge=1)
    max_length: int = Field(default=1024, ge=8)
    id: str | None = None
    category: str | None = None
