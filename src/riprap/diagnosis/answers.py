"""What a model would say on probes if it had to choose among the answers that are at home there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from riprap import probing
from riprap.behaviors import Behavior
from riprap.behaviors.kinds import Choice, NextToken, Options, options_log_probs
from riprap.behaviors.outputs import last_logits

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """One look at a behaviour's probes, and at those of its contrast.

    Attributes:
        margins: shape (n,), as the behaviours define them.
        weights: shape (n,), sum 1; a behaviour and its contrast weigh alike.
        fit: shape (n, c): how well each of c answers fits each probe; None where a behaviour does
            not say which answers there are.
        right: shape (n,), index of the right one.
        shared: whether the c answers are the same for all probes.
        kind: share of probes on which the model's own first choice is one of the c answers, right
            or wrong: does it still answer in this form? NaN where that is not known.
    """

    margins: Array
    weights: Array
    fit: Array | None = None
    right: NDArray[np.int64] | None = None
    shared: bool = False
    kind: float = float("nan")

    @property
    def score(self) -> float:
        """Share of margins above 0."""
        return share(self.margins > 0, self.weights)

    def part(self, rows: Sequence[int]) -> Answers:
        """The same of some of the probes; `kind` stays that of all."""
        weights = self.weights[list(rows)]
        fit = None if self.fit is None else self.fit[list(rows)]
        right = None if self.right is None else self.right[list(rows)]
        own = self.margins[list(rows)], weights / weights.sum()
        return Answers(*own, fit, right, self.shared, self.kind)


def share(holds: NDArray[Any], weights: Array) -> float:
    """The weighted share of probes on which something holds; all of them are exactly 1."""
    return round(float(holds @ weights), 12)


def look(behavior: Behavior, model: nn.Module, contrast: Behavior | None = None) -> Answers:
    """One pass over the probes, leaving no trace.

    With a contrast, the two answers are the two sides: what a refusal's margin says for harmful
    requests, that of over-refusal says the other way round for harmless ones.
    """
    margins = probing.look(behavior, model).margins
    if contrast is not None:
        others = probing.look(contrast, model).margins
        both = np.concatenate([margins, others])
        sides = np.repeat([0, 1], [len(margins), len(others)])
        weights = 0.5 / np.bincount(sides)[sides]
        reading = np.where(sides == 0, both, -both)
        fit = np.stack([reading, -reading], 1) / 2
        return Answers(both, weights, fit, sides, shared=True)
    even = np.full(len(margins), 1 / len(margins))
    kind, probes = behavior.margins, behavior.probes
    with torch.inference_mode(False), torch.no_grad(), probing.no_trace(model):
        if isinstance(kind, NextToken):
            logits = last_logits(model, probes)[:, -1]
            allowed, right = kind.targets.to(logits.device).unique(return_inverse=True)
            if len(allowed) == 1:  # there is nothing to choose
                return Answers(margins, even)
            own = float(torch.isin(logits.argmax(-1), allowed).double().mean())
            chosen = logits.log_softmax(-1)[:, allowed].double().cpu().numpy()
            return Answers(margins, even, chosen, right.cpu().numpy(), shared=True, kind=own)
        if isinstance(kind, Choice) and isinstance(probes, Options):
            chosen = options_log_probs(model, probes)[0].double().cpu().numpy()
            return Answers(margins, even, chosen, probes.wanted.long().argmax(-1).numpy())
    return Answers(margins, even)


def known(looks: Sequence[Answers]) -> Array:
    """On which probes the looks together choose the right answer, shape (n,), 0 or 1.

    Fits are averaged over the looks, so that what one of them forgot by chance counts less. Where
    all probes share the answers, each answer's mean over the probes is taken off first: a liking
    for one of them is a disposition, and no knowledge (after Zhao et al., 2102.09690). Without
    answers it is the mean margin that must be above 0.
    """
    first = looks[0]
    if first.fit is None or first.right is None:
        return np.asarray(np.mean([one.margins for one in looks], 0) > 0, dtype=np.float64)
    fit = np.mean([one.fit for one in looks if one.fit is not None], 0)
    if first.shared:
        fit = fit - first.weights @ fit
    return np.asarray(fit.argmax(1) == first.right, dtype=np.float64)


def chance(one: Answers) -> float:
    """What `known` gives to whoever knows nothing; NaN where that is not known.

    With shared answers, the largest share of probes that one answer serves; with options of each
    probe's own, one by their number.
    """
    if one.fit is None or one.right is None:
        return float("nan")
    if not one.shared:
        return 1 / one.fit.shape[1]
    return float(np.bincount(one.right, weights=one.weights).max())
