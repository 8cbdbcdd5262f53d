"""Settings of `riprap diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from riprap._config import StrictModel
from riprap.behaviors import probe_sets
from riprap.diagnosis.recovery import MIN_PROBES
from riprap.errors import BehaviorError

BEHAVIORS = ("refusal", "over_refusal", "arithmetic", "general_knowledge", "instruction_format")
N_EXAMPLES = 10  # per behavior, disjoint from its probes


class DiagnoseConfig(StrictModel):
    """The two models, the behaviors to measure, and the output folders.

    Attributes:
        base: folder or hub id of the model before fine-tuning.
        tuned: folder or hub id of the model after it, or the folder of a LoRA adapter of `base`.
        out: folder of the report; None: in the folder of the run that made `tuned`, or `diagnosis`.
        behaviors: names of probe sets, or files with your own probes; see `probe_sets.load`.
        refusal_prefixes: first words of the base model's refusals; empty: those of the probe sets.
        n_probes: number of probes per behavior; halved for multiple-choice behaviors, each of whose
            options is evaluated.
        naive_model: folder or hub id of a model of the same architecture that never had the
            behaviors: it shows what the examples alone teach.
        full: measure all of recovery (the curve over example counts, every draw, every learning
            rate), the linear path, and the divergence with layers restored one by one.
        repairs: try repairs of what was lost.
        run: with `repairs`: folder of the `riprap watch` run that made `tuned`. Its checkpoints
            are tried as repairs, and its data measure what a repair costs.
        save_repair: with `repairs`: folder for the cheapest repaired model.
        evals: results of `riprap eval` of the base and of the tuned model, or their folders.
    """

    renamed: ClassVar[dict[str, str]] = {
        "openers": "refusal_prefixes",
        "probes": "n_probes",
        "never": "naive_model",
    }

    base: str = Field(min_length=1)
    tuned: str = Field(min_length=1)
    out: Path | None = None
    behaviors: tuple[str, ...] = Field(default=BEHAVIORS, min_length=1)
    refusal_prefixes: tuple[str, ...] = ()
    n_probes: int = Field(default=16, ge=2 * MIN_PROBES)
    naive_model: str | None = None
    full: bool = False
    repairs: bool = False
    run: Path | None = None
    save_repair: Path | None = None
    evals: tuple[Path, Path] | None = None

    @model_validator(mode="after")
    def _check_behaviors(self) -> Self:
        try:
            use_prefixes = [
                probe_sets.is_prefix_probe(probe_sets.rows(name)[0]) for name in self.behaviors
            ]
        except BehaviorError as error:
            raise ValueError(str(error)) from error
        if self.refusal_prefixes and not any(use_prefixes):
            raise ValueError("refusal_prefixes has no effect: none of the behaviors uses prefixes")
        names = [probe_sets.behavior_name(name) for name in self.behaviors]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise ValueError(f"two behaviors are named {duplicate!r}: drop one, or rename its file")
        for name, value in (("run", self.run), ("save_repair", self.save_repair)):
            if value is not None and not self.repairs:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{name} has no effect without repairs: add --repairs to {option}")
        return self
