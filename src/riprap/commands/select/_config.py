"""What `riprap select` is asked for."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from riprap._config import StrictModel
from riprap.commands.watch import DataConfig


class SelectConfig(StrictModel):
    """A data set, the model that is to learn it, and which of its rows to take.

    Attributes:
        data: JSON Lines, and the names of its fields.
        model: as in `WatchConfig`.
        out: folder of everything that is written; a run that was cut off goes on in it.
        strategy: a key of `choosing.RULES`.
        ratio: share of the usable rows that is taken, rounded down, at least one.
        behaviors: packs, or files of one's own, whose erosion is predicted; probes that the model
            passes are kept.
        openers: what the model's refusals begin with; empty: the packs' own.
        lora_rank: of the adapter whose gradients are meant; 0: all parameters.
        batch: rows a forward pass.
        max_length: tokens a row; longer ones are cut, as in training.
        id, category: fields that name a row and its kind.
    """

    data: DataConfig
    model: str
    out: Path
    strategy: str = "moderate"
    ratio: float = Field(default=0.2, gt=0, le=1)
    behaviors: tuple[str, ...] = ()
    openers: tuple[str, ...] = ()
    lora_rank: int = Field(default=32, ge=0)
    batch: int = Field(default=8, ge=1)
    max_length: int = Field(default=256, ge=8)
    id: str | None = None
    category: str | None = None
