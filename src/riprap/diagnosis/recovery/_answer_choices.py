"""What a model would say on probes if it had to choose among the answers that are at home there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior, Choice, NextToken, Options, last_logits, options_read

Array = NDArray[np.float64]
LEAD = 1e-4  # logits or nats by which an answer must lead to be chosen, and not by rounding


@dataclass(frozen=True)
class Answers:
    """One look at a behaviour's probes, and at those of its contrast.

    Attributes:
        margins: shape (n,), as the behaviours define them.
        weights: shape (n,), sum 1; a behaviour and its contrast weigh alike.
        fit: shape (n, c): how well each of c answers fits each probe; None where a behaviour does
            not say which answers there are.
        right: shape (n,), index of the right one; with a contrast, of the probe's side.
        shared: whether the c answers are the same for all probes.
        first: shape (n,), the model's own first choice as a token; None where that is not known.
        inside: shape (n,), whether it is one of the c answers, right or wrong.
        insufficient: why the margins do not measure the behaviour; empty where they do.
        two_sided: whether it is a behaviour beside its contrast, and the answers are the sides.
    """

    margins: Array
    weights: Array
    fit: Array | None = None
    right: NDArray[np.int64] | None = None
    shared: bool = False
    first: NDArray[np.int64] | None = None
    inside: NDArray[np.bool_] | None = None
    insufficient: str = ""
    two_sided: bool = False

    @property
    def kind(self) -> float:
        """Share of first choices that are answers: does it still answer in this form?"""
        return float("nan") if self.inside is None else share(self.inside, self.weights)

    @property
    def habit(self) -> float:
        """How much of the first choices that are no answers is one and the same token.

        Beside one of these choices, the share of the others that are like it; NaN where there are
        no others.
        """
        if self.first is None or self.inside is None or (~self.inside).sum() < 2:
            return float("nan")
        counts = np.unique(self.first[~self.inside], return_counts=True)[1]
        return float((counts.max() - 1) / (counts.sum() - 1))

    @property
    def commonest(self) -> float:
        """The largest share of the probes that get one and the same of the shared answers."""
        if self.fit is None or not self.shared:
            return float("nan")
        return float(np.bincount(self.fit.argmax(1), weights=self.weights).max())

    @property
    def score(self) -> float:
        """Share of margins above 0."""
        return share(self.margins > 0, self.weights)

    def part(self, rows: Sequence[int]) -> Answers:
        """The same of some of the probes."""
        own = list(rows)
        cut: dict[str, Any] = {
            name: None if (found := getattr(self, name)) is None else found[own]
            for name in ("fit", "right", "first", "inside")
        }
        weights = self.weights[own] / self.weights[own].sum()
        return replace(self, margins=self.margins[own], weights=weights, **cut)


def share(holds: NDArray[Any], weights: Array) -> float:
    """The weighted share of probes on which something holds; all of them are exactly 1."""
    return round(float(holds @ weights), 12)


def look(
    behavior: Behavior,
    model: nn.Module,
    contrast: Behavior | None = None,
    also: Sequence[int] = (),
) -> Answers:
    """One pass over the probes, leaving no trace.

    With a contrast, the two answers are the two sides: what a refusal's margin says for harmful
    requests, that of over-refusal says the other way round for harmless ones.

    Args:
        also: tokens that are answers too, beside those that are right for some probe.
    """
    seen = probing.look(behavior, model)
    margins, why = seen.margins, seen.insufficient
    if contrast is not None:
        other = probing.look(contrast, model)
        others, why = other.margins, why or other.insufficient
        both = np.concatenate([margins, others])
        sides = np.repeat([0, 1], [len(margins), len(others)])
        weights = 0.5 / np.bincount(sides)[sides]
        reading = np.where(sides == 0, both, -both)
        fit = np.stack([reading, -reading], 1) / 2
        return Answers(both, weights, fit, sides, shared=True, insufficient=why, two_sided=True)
    even = np.full(len(margins), 1 / len(margins))
    kind, probes = behavior.margins, behavior.probes
    with torch.inference_mode(False), torch.no_grad(), probing.no_trace(model):
        if isinstance(kind, NextToken):
            logits = last_logits(model, probes)[:, -1]
            targets = kind.targets.to(logits.device)
            if len(targets.unique()) == 1:  # there is nothing to choose
                return Answers(margins, even)
            more = targets.new_tensor([token for token in also if 0 <= token < logits.shape[-1]])
            allowed = torch.cat([targets, more]).unique()
            right, first = torch.searchsorted(allowed, targets), logits.argmax(-1)
            return Answers(
                margins,
                even,
                logits.log_softmax(-1)[:, allowed].double().cpu().numpy(),
                right.cpu().numpy(),
                shared=True,
                first=first.cpu().numpy(),
                inside=torch.isin(first, allowed).cpu().numpy(),
            )
        if isinstance(kind, Choice) and isinstance(probes, Options):
            chosen, _, said = options_read(model, probes)
            first = said.cpu()
            heads = {*probes.first_tokens().tolist(), *also}
            return Answers(
                margins,
                even,
                chosen.double().cpu().numpy(),
                probes.wanted.long().argmax(-1).cpu().numpy(),
                first=first.numpy(),
                inside=np.array([token in heads for token in first.tolist()]),
                insufficient=why,
            )
    return Answers(margins, even, insufficient=why)


def chosen(looks: Sequence[Answers]) -> NDArray[np.int64]:
    """The answer that the looks together choose on each probe, shape (n,); -1 where none leads.

    Fits are averaged over the looks, so that what one of them forgot by chance counts less. Where
    all probes share the answers, each answer's mean over the probes is taken off first: a liking
    for one of them is a disposition, and no knowledge (after Zhao et al., 2102.09690).
    """
    first = looks[0]
    fit = np.mean([one.fit for one in looks if one.fit is not None], 0)
    if first.shared:
        fit = fit - first.weights @ fit
    ordered = np.sort(fit, 1)
    return np.where(ordered[:, -1] - ordered[:, -2] > LEAD, fit.argmax(1), -1)


def known(looks: Sequence[Answers]) -> Array:
    """On which probes the looks together choose the right answer, shape (n,), 0 or 1.

    Without answers it is the mean margin that must be above 0.
    """
    first = looks[0]
    if first.fit is None or first.right is None:
        return np.asarray(np.mean([one.margins for one in looks], 0) > 0, dtype=np.float64)
    return np.asarray(chosen(looks) == first.right, dtype=np.float64)


def chance(looks: Sequence[Answers]) -> Array:
    """What `known` would give if the same answers were chosen as often, blindly, shape (n,).

    That is how often a probe's right answer is chosen on all probes; with options of each probe's
    own, one by their number. NaN without answers.
    """
    first = looks[0]
    if first.fit is None or first.right is None:
        return np.full(len(first.margins), np.nan)
    if not first.shared:
        return np.full(len(first.margins), 1 / first.fit.shape[1])
    said = chosen(looks)
    rates = np.bincount(
        said[said >= 0], weights=first.weights[said >= 0], minlength=first.fit.shape[1]
    )
    return np.asarray(rates[first.right], dtype=np.float64)


def exchanged(one: Answers) -> Array:
    """On which probes the right answer follows from the one that is chosen, shape (n,), 0 or 1.

    The rule is learned on all other probes: what is mostly right where this answer is chosen. It
    finds what is known under exchanged names. Only answers that all probes share have such a rule.
    """
    right = np.zeros(len(one.margins))
    if one.fit is None or one.right is None or not one.shared:
        return right
    counts = np.zeros((one.fit.shape[1],) * 2)
    said = chosen([one])
    np.add.at(counts, (said[said >= 0], one.right[said >= 0]), one.weights[said >= 0])
    for row in np.flatnonzero(said >= 0):
        others, true = counts[said[row]].copy(), one.right[row]
        others[true] -= one.weights[row]
        right[row] = others.argmax() == true and others[true] > 1e-12
    return right
