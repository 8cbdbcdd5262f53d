"""Forced prefix: does the rest follow once the first tokens of a response are given?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import nn

from riprap.diagnosis._base import Estimate, estimate
from riprap.diagnosis._weight_sources import Reference, Weights, reference_model
from riprap.diagnosis.evidence._responses import Prompts, paired_responses, response_batches, prompt_rows
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state
from riprap.types import ReadingStatus

PREFIX_LENGTHS = (0, 1, 2, 4)


@dataclass(frozen=True)
class PrefixPoint:
    """What follows when the first `count` tokens of each response are given.

    Attributes:
        n: responses that are longer than that; the others do not count.
        next: share of them whose next token is the greedy one, with its 95 % Wilson interval.
        whole: share of them of which every remaining token is.
        log_prob: mean over them of the mean log-probability of a remaining token, in nats.
        state, detail: INSUFFICIENT where most responses are too short; then nothing is measured.
    """

    count: int
    n: int
    next_token: Estimate | None = None
    full_response: Estimate | None = None
    log_prob: Estimate | None = None
    status: ReadingStatus = ReadingStatus.MEASURED
    detail: str = ""


@dataclass(frozen=True)
class PrefixForcing:
    """What `force` found.

    Attributes:
        now: one entry a count, of the model.
        reference: the same of the reference; None where there is none.
    """

    now: tuple[PrefixPoint, ...]
    reference: tuple[PrefixPoint, ...] | None

    def at(self, count: int) -> PrefixPoint:
        """The model's entry for a count."""
        return next(given for given in self.now if given.count == count)


def prefix_forcing(
    model: nn.Module,
    prompts_or_behavior: Prompts,
    responses: Sequence[Sequence[int]],
    *,
    counts: Sequence[int] = PREFIX_LENGTHS,
    reference: Reference = None,
    weights_on_disk: Weights | None = None,
) -> PrefixForcing:
    """How well a model goes on with responses of which the first tokens are given.

    Teacher-forced, in one pass: a token is the greedy one if it has the largest logit after all
    that stand before it. What comes back with the first tokens was not lost: only the way into
    it was.

    Args:
        behavior_or_prompts: token ids of each prompt, or a behaviour whose probes hold them.
        responses: token ids of what should follow, one row a prompt; see `responses_of`.
        counts: how many tokens are given.
        reference: the model before; None: the model without its adapters where it has some.
        home: see `kept`.

    Source: after Qi et al., 2406.05946 (prefilled refusals), and 2501.13453.

    Raises:
        BehaviorError: prompts and responses do not fit together.
        ConfigError: no counts, or a negative one.
    """
    if not counts or min(counts) < 0:
        raise ConfigError(f"counts={tuple(counts)}: give one or more, none below 0")
    prompts = prompt_rows(prompts_or_behavior)
    wanted = paired_responses(prompts, responses)
    has_reference = reference is not None or hasattr(model, "disable_adapter")
    with torch.inference_mode(False), torch.no_grad(), preserve_training_state(model):
        now = _greedy_matches(model, prompts, wanted)
        then = None
        if has_reference:
            with reference_model(model, reference, weights_on_disk) as there, preserve_training_state(there):
                then = _greedy_matches(there, prompts, wanted)
    return PrefixForcing(
        tuple(_prefix_point(count, now) for count in counts),
        None if then is None else tuple(_prefix_point(count, then) for count in counts),
    )


def _greedy_matches(
    model: nn.Module, prompts: list[list[int]], responses: list[list[int]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each response whether its tokens are the greedy ones, and their log-probabilities."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for part in response_batches(model, prompts, responses):
        logits = part.logits(model)
        tokens = part.tokens.to(logits.device)
        hits = logits.argmax(-1) == tokens
        chosen = logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)
        found += [
            (hit.numpy() > 0, log_prob.numpy())
            for hit, log_prob in zip(part.per_response(hits), part.per_response(chosen), strict=True)
        ]
    return found


def _prefix_point(count: int, followed: list[tuple[np.ndarray, np.ndarray]]) -> PrefixPoint:
    longer = [(hits[count:], values[count:]) for hits, values in followed if len(hits) > count]
    if 2 * len(longer) <= len(followed):
        why = f"{len(longer)} of {len(followed)} responses are longer than {count} tokens"
        return PrefixPoint(count, len(longer), status=ReadingStatus.INSUFFICIENT, detail=why)
    return PrefixPoint(
        count,
        len(longer),
        _wilson_estimate([bool(hits[0]) for hits, _ in longer]),
        _wilson_estimate([bool(hits.all()) for hits, _ in longer]),
        estimate([float(values.mean()) for _, values in longer]),
    )


def _wilson_estimate(hits: list[bool]) -> Estimate:
    """With an interval that stands also where all or none hit (Wilson, 1927)."""
    bounds = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return Estimate(sum(hits) / len(hits), float(bounds.low), float(bounds.high), len(hits))
