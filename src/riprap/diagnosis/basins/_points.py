"""Measurement at one point around a checkpoint: margins, and judged answers if requested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from riprap import evaluation
from riprap.behaviors import Behavior, require_behaviors
from riprap.errors import BehaviorError, ConfigError

# A slow judge: the share of a behavior's probes that the model's own answers pass.
Judge = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Point:
    """Measurement at one point, by behavior.

    Attributes:
        scores: share of probes with a margin above 0; a margin that is not finite counts as broken.
        margins: shape (n_probes,), unchanged.
        doubtful: whether a margin was not finite, or the margins were insufficient.
        judged: the share of probes that the judged answers pass, for behaviors with a judge.
    """

    scores: dict[str, float]
    margins: dict[str, np.ndarray]
    doubtful: dict[str, bool]
    judged: dict[str, float] = field(default_factory=dict)


class PointEvaluator:
    """Evaluate several behaviors in as few passes as possible, leaving training untouched.

    Raises:
        ConfigError: no behaviors, two of the same name, or a judge of none of them.
    """

    def __init__(
        self,
        model: nn.Module,
        behaviors: Sequence[Behavior],
        judges: Mapping[str, Judge] | None = None,
    ) -> None:
        behaviors = require_behaviors(behaviors, "a basin needs behaviors", "basin(model, [{}])")
        counts = Counter(behavior.name for behavior in behaviors)
        name, count = counts.most_common(1)[0]
        if count > 1:
            raise ConfigError(f"two behaviors are named {name!r}: give each its own name")
        self.model, self.judges = model, dict(judges or {})
        names = ", ".join(map(repr, counts))
        for name in self.judges:
            if name not in counts:
                raise ConfigError(f"judges has {name!r}, which is none of the behaviors {names}")
        self._groups = evaluation.group_by_forward_pass(behaviors, model)

    def evaluate(self) -> Point:
        """Evaluate the model at its current weights."""
        scores, margins, doubtful = {}, {}, {}
        for group in self._groups:
            for name, result in evaluation.evaluate_batch(group, self.model).items():
                finite = np.isfinite(result.margins)
                scores[name] = float(((result.margins > 0) & finite).mean())
                margins[name] = result.margins
                doubtful[name] = not finite.all() or bool(result.insufficient)
        judged = {name: self._judged_score(name, judge) for name, judge in self.judges.items()}
        return Point(scores, margins, doubtful, judged)

    def _judged_score(self, name: str, judge: Judge) -> float:
        with torch.no_grad(), evaluation.preserve_training_state(self.model):
            share = float(judge(self.model))
        if not 0 <= share <= 1:
            raise BehaviorError(
                f"the judge of {name!r} returned {share}; expected a share of probes from 0 to 1"
            )
        return share
