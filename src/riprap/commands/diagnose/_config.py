"""What `riprap diagnose` is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from riprap._config import StrictModel
from riprap.behaviors import probe_sets as packs
from riprap.diagnosis.recovery import FEWEST
from riprap.errors import BehaviorError

BEHAVIORS = ("refusal", "over_refusal", "arithmetic", "general_knowledge", "instruction_format")
EXAMPLES = 10  # of each behaviour, kept apart from its probes


class DiagnoseConfig(StrictModel):
    """Two models, the one made from the other, and what is looked at.

    Attributes:
        base: folder or hub id of the model before.
        tuned: of the model after; or folder of a LoRA adapter of `base`.
        out: folder of the report.
        behaviors: packs, or files of one's own; see `packs.load`.
        openers: what the base model's refusals begin with; empty: the packs' own.
        probes: how many measure each behaviour; one that is told by a choice of answers, each of
            which is read, has half of them.
        never: folder or hub id of a model of this kind that never had the behaviours: what
            examples alone can teach.
        run: folder of the run that made `tuned`, by `riprap watch`: its checkpoints to go back to,
            and its data, on which is measured what a repair takes.
        save_repair: folder into which the cheapest repaired model is saved.
    """

    base: str = Field(min_length=1)
    tuned: str = Field(min_length=1)
    out: Path
    behaviors: tuple[str, ...] = Field(default=BEHAVIORS, min_length=1)
    openers: tuple[str, ...] = ()
    probes: int = Field(default=16, ge=2 * FEWEST)
    never: str | None = None
    run: Path | None = None
    save_repair: Path | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            opens = [packs.opens(packs.rows(name)[0]) for name in self.behaviors]
        except BehaviorError as error:
            raise ValueError(str(error)) from error
        if self.openers and not any(opens):
            raise ValueError("openers are those of refusals, and no behavior is told by openers")
        called = [packs.title(name) for name in self.behaviors]
        twice = next((name for name in called if called.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two behaviors are called {twice!r}: drop one, or rename its file")
        return self
