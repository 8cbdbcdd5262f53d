"""Prefix forcing: does the rest of a response follow if its first tokens are given?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import nn

from riprap.diagnosis._base import Estimate, estimate
from riprap.diagnosis._weight_sources import Reference, Weights, reference_model
from riprap.diagnosis.evidence._responses import (
    Prompts,
    Rows,
    paired_responses,
    prompt_rows,
    response_batches,
)
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state
from riprap.types import ReadingStatus

PREFIX_LENGTHS = (0, 1, 2, 4)


@dataclass(frozen=True)
class PrefixPoint:
    """Continuation of the responses after their first `count` tokens are given.

    Attributes:
        n: number of responses longer than `count`; the others are not used.
        next_token: share of these whose next token is the greedy one, with a 95 % Wilson interval.
        full_response: share of these whose remaining tokens all are.
        log_prob: mean over these of the mean log-probability of a remaining token, in nats.
        status, detail: INSUFFICIENT if most responses are too short; then nothing is measured.
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
    """Result of `prefix_forcing`.

    Attributes:
        now: of the model, one point per count.
        reference: the same of the reference; None without one.
    """

    now: tuple[PrefixPoint, ...]
    reference: tuple[PrefixPoint, ...] | None

    def at(self, count: int) -> PrefixPoint:
        """Return the model's point for a count."""
        return next(point for point in self.now if point.count == count)


def prefix_forcing(
    model: nn.Module,
    prompts: Prompts,
    responses: Sequence[Sequence[int]],
    *,
    counts: Sequence[int] = PREFIX_LENGTHS,
    reference: Reference = None,
    weights_on_disk: Weights | None = None,
) -> PrefixForcing:
    """Measure how well a model continues responses whose first tokens are given.

    Teacher-forced, in one pass: a token is greedy if it has the largest logit after all tokens
    before it. If the response returns with its first tokens, only its beginning was lost.

    Args:
        prompts: token ids of each prompt, or a behavior whose probes have them.
        responses: token ids of the expected response, one row per prompt; see `greedy_responses`.
        counts: numbers of given tokens.
        reference: the model before training, or its weights; None: the model with its adapters
            disabled, if it has any.
        weights_on_disk: see `restore_weights`.

    Source: after Qi et al., 2406.05946 (prefilled refusals), and 2501.13453.

    Raises:
        BehaviorError: prompts and responses do not match.
        ConfigError: no counts, or a negative one.
    """
    if not counts or min(counts) < 0:
        raise ConfigError(f"counts={tuple(counts)}; pass one or more, none below 0")
    prompts = prompt_rows(prompts)
    responses = paired_responses(prompts, responses)
    has_reference = reference is not None or hasattr(model, "disable_adapter")
    with torch.inference_mode(False), torch.no_grad(), preserve_training_state(model):
        now = _greedy_matches(model, prompts, responses)
        before = None
        if has_reference:
            with (
                reference_model(model, reference, weights_on_disk) as base,
                preserve_training_state(base),
            ):
                before = _greedy_matches(base, prompts, responses)
    return PrefixForcing(
        tuple(_prefix_point(count, now) for count in counts),
        None if before is None else tuple(_prefix_point(count, before) for count in counts),
    )


def _greedy_matches(
    model: nn.Module, prompts: Rows, responses: Rows
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each response, whether its tokens are the greedy ones, and their log-probabilities."""
    matches: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in response_batches(model, prompts, responses):
        logits = batch.logits(model)
        tokens = batch.tokens.to(logits.device)
        greedy = batch.per_response(logits.argmax(-1) == tokens)
        log_probs = logits.gather(-1, tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)
        matches += [
            (is_greedy.numpy() > 0, log_prob.numpy())
            for is_greedy, log_prob in zip(greedy, batch.per_response(log_probs), strict=True)
        ]
    return matches


def _prefix_point(count: int, matches: list[tuple[np.ndarray, np.ndarray]]) -> PrefixPoint:
    rest = [(greedy[count:], values[count:]) for greedy, values in matches if len(greedy) > count]
    if 2 * len(rest) <= len(matches):
        why = f"{len(rest)} of {len(matches)} responses are longer than {count} tokens"
        return PrefixPoint(count, len(rest), status=ReadingStatus.INSUFFICIENT, detail=why)
    return PrefixPoint(
        count,
        len(rest),
        _wilson_estimate([bool(greedy[0]) for greedy, _ in rest]),
        _wilson_estimate([bool(greedy.all()) for greedy, _ in rest]),
        estimate([float(values.mean()) for _, values in rest]),
    )


def _wilson_estimate(hits: list[bool]) -> Estimate:
    """Share with its 95 % Wilson interval (1927), which is valid for all or no hits too."""
    bounds = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return Estimate(sum(hits) / len(hits), float(bounds.low), float(bounds.high), len(hits))
