"""Results of `riprap diagnose`: one entry per behavior, and the repairs that were tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from riprap.diagnosis.evidence import Decodability, Divergence, PathProfile, PrefixForcing
from riprap.diagnosis.recovery import MIN_SCORE_DROP, Recovery
from riprap.diagnosis.repair import Repair
from riprap.types import BrokenProbe


def has_loss(score_before: float, score_now: float, floor: float) -> bool:
    """Return whether a behavior is under its floor, or dropped enough for a verdict."""
    return score_now < floor or score_before - score_now >= MIN_SCORE_DROP


@dataclass
class BehaviorDiagnosis:
    """Scores and evidence of one behavior.

    Attributes:
        probes: number of test probes; 0 if the base model passes too few.
        score_before, score_now: score of the base model and of the tuned model.
        margin_before, margin_now: their mean margins.
        missing: by kind of evidence (recovery, naive model, prefix forcing, linear decodability,
            linear path), or `probes`: the reason why it was not run.
        broken: probes that the tuned model fails, with the first tokens of both models' answers.
    """

    name: str
    floor: float
    probes: int = 0
    score_before: float = float("nan")
    score_now: float = float("nan")
    margin_before: float = float("nan")
    margin_now: float = float("nan")
    recovery: Recovery | None = None
    prefix_forcing: PrefixForcing | None = None
    decodability: Decodability | None = None
    linear_path: PathProfile | None = None
    missing: dict[str, str] = field(default_factory=dict)
    broken: list[BrokenProbe] = field(default_factory=list)

    @property
    def is_broken(self) -> bool:
        """True if the score is under its floor."""
        return self.probes > 0 and self.score_now < self.floor


@dataclass
class Diagnosis:
    """Comparison of a tuned model with its base.

    Attributes:
        repairs: the first is the model without a repair; empty if none were tried.
        cheapest_repair: the cheapest one that brings all behaviors to their floors.
        cost_measure: short description of the data on which the cost of repairs is measured.
        seconds: by stage.
        peak_memory: formatted, with its unit.
        no_repairs: why no repair was tried, although something was lost; empty if some were.
    """

    base: str
    tuned: str
    behaviors: list[BehaviorDiagnosis]
    divergence: Divergence | None
    repairs: Sequence[Repair]
    cheapest_repair: Repair | None
    cost_measure: str
    settings: dict[str, Any]
    seconds: dict[str, float]
    peak_memory: str
    no_repairs: str = ""

    @property
    def floors(self) -> dict[str, float]:
        """Floors of the behaviors that were measured, by name."""
        return {behavior.name: behavior.floor for behavior in self.behaviors if behavior.probes}
