"""Margin functions that Riprap offers: one class for each kind of behavior."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap.behaviors._answers import Answers, followed_answers, note_answers
from riprap.behaviors._base import MarginFunction, ProbeSet
from riprap.behaviors._branch_logits import branch_logits
from riprap.behaviors._last_logits import last_logits
from riprap.behaviors._margin_formulas import (
    Margins,
    continuation_log_probs,
    preference_margin,
    token_margin,
)
from riprap.behaviors._model_io import TokenBatch
from riprap.errors import BehaviorError

MIN_FIRST_TOKEN_MASS = 0.05  # of chosen and rejected continuations together


def check_vocabulary(what: str, tokens: Tensor, logits: Tensor) -> None:
    outside = tokens[(tokens < 0) | (tokens >= logits.shape[-1])]
    if len(outside):
        raise BehaviorError(
            f"{what} token {int(outside[0])} is outside the model's vocabulary of "
            f"{logits.shape[-1]}; use the model's own tokenizer"
        )


class LastLogitsMargin(MarginFunction):
    """A margin of the logits at the last position of each probe of a `TokenBatch`.

    Behaviors with such margins and the same branches share one forward pass.

    Attributes:
        branches: token ids after each probe, at whose ends logits are read too: a tree, in which
            the beginnings of a branch come before it. Empty for most margins.
    """

    unit = "logits"
    branches: tuple[tuple[int, ...], ...] = ()

    @abstractmethod
    def from_logits(self, logits: Tensor) -> Tensor:
        """Return the margins, shape (n,), from logits of shape (n, vocabulary).

        With branches: from logits of shape (n, 1 + branches, vocabulary).
        """

    def read_logits(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        """Compute the logits that `from_logits` needs."""
        if self.branches:
            return branch_logits(model, probes, self.branches)
        return last_logits(model, probes)[:, -1]

    def __call__(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        logits = self.read_logits(model, probes)
        note_answers(lambda: self.answers(logits))
        return self.from_logits(logits)

    def answers(self, logits: Tensor) -> Answers:
        """Return the first tokens of each answer, as far as the logits show them."""
        first = logits[:, 0] if logits.dim() == 3 else logits
        return first.argmax(-1)[:, None].tolist()  # type: ignore[no-any-return]

    def answer_logits(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        """Return the logits at the last position, shape (n_probes, vocabulary)."""
        return last_logits(model, probes)[:, -1]


class NextToken(LastLogitsMargin):
    """Token margin: logit of the target − largest other logit, at the last position."""

    separable = True
    targets: Tensor

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def select(self, indices: Sequence[int]) -> NextToken:
        return NextToken(self.targets[list(indices)])

    def from_logits(self, logits: Tensor) -> Tensor:
        """Return the lead of each target, shape (n,)."""
        check_vocabulary("target", self.targets, logits)
        return token_margin(logits, self.targets.to(logits.device))

    def losses(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        """Return the cross-entropy of each target, in nats."""
        logits = last_logits(model, probes)[:, -1]
        return functional.cross_entropy(logits, self.targets.to(logits.device), reduction="none")

    def answer_tokens(self, probes: TokenBatch) -> list[int]:
        return sorted(set(self.targets.tolist()))


@dataclass(frozen=True, repr=False)
class Continuations(ProbeSet):
    """Prompts, each with its possible continuations, teacher-forced.

    Attributes:
        batch: prompt + continuation, one row for each option: n_probes × options rows, probe by
            probe.
        continuation, mask: shape (rows, K), right-aligned ids and 1 on real tokens.
        is_correct: shape (n_probes, options), bool.
    """

    batch: TokenBatch
    continuation: Tensor
    mask: Tensor
    is_correct: Tensor

    def __repr__(self) -> str:
        n_options, length = self.is_correct.shape[1], self.max_length
        return f"Continuations({len(self)} probes, {n_options} options, up to {length} tokens)"

    @classmethod
    def build(
        cls, prompts: list[list[int]], options: list[list[list[int]]], is_correct: Tensor
    ) -> Continuations:
        """Combine each prompt with its own options; all probes have the same number of options."""
        rows = [p + o for p, own in zip(prompts, options, strict=True) for o in own]
        padded = TokenBatch.pad([o for own in options for o in own])
        ids, mask = padded.input_ids, padded.attention_mask
        mask = torch.ones_like(ids) if mask is None else mask
        return cls(TokenBatch.pad(rows), ids, mask, is_correct)

    @property
    def max_length(self) -> int:
        """Length of the longest prompt + continuation, in tokens."""
        return self.batch.max_length

    def __len__(self) -> int:
        return len(self.is_correct)

    def rows(self) -> list[list[int]]:
        """Return the token ids of each prompt; with one option, those of prompt + continuation."""
        n_options = self.is_correct.shape[1]
        rows = self.batch.rows()[::n_options]
        if n_options == 1:
            return rows
        lengths = self.mask.sum(-1)[::n_options].tolist()
        return [row[: len(row) - length] for row, length in zip(rows, lengths, strict=True)]

    def sequences(self) -> list[list[int]]:
        """Return the token ids of each prompt + continuation, probe by probe."""
        return self.batch.rows()

    def first_tokens(self) -> Tensor:
        """Return the first token of each continuation, shape (rows,)."""
        first = (self.continuation.shape[1] - self.mask.sum(-1)).long()[:, None]
        return self.continuation.gather(1, first).squeeze(1)

    def select(self, indices: list[int]) -> Continuations:
        n_options = self.is_correct.shape[1]
        rows = [index * n_options + option for index in indices for option in range(n_options)]
        batch, correct, mask = self.batch.select(rows), self.is_correct[indices], self.mask[rows]
        longest = int(mask.sum(-1).max())
        return Continuations(
            batch, self.continuation[rows][:, -longest:], mask[:, -longest:], correct
        )


def score_continuations(model: nn.Module, probes: Continuations) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the log-probabilities of each probe's options.

    Returns:
        (mean log-probability per token of each option, shape (n, options); log-probability of its
        first token, same shape; the model's own first token after each prompt, shape (n,)).
    """
    width = probes.continuation.shape[1]
    n_used, options = probes.mask.sum(-1) + 1, probes.is_correct.shape[1]
    logits = last_logits(model, probes.batch, width + 1, n_used, options)
    continuation = probes.continuation.to(logits.device)
    mask = probes.mask.to(logits.device)
    means = continuation_log_probs(logits, continuation, mask)
    note_answers(lambda: followed_answers(logits, continuation, mask, options))
    first = (width - mask.sum(-1)).long()
    rows = torch.arange(len(mask), device=logits.device)
    at_first = functional.log_softmax(logits[rows, first].detach(), dim=-1)
    first_log_probs = at_first.gather(-1, continuation[rows, first][:, None]).squeeze(-1)
    shape = probes.is_correct.shape
    return means.view(shape), first_log_probs.view(shape), at_first.argmax(-1).view(shape)[:, 0]


class ContinuationMargin(MarginFunction):
    """A margin of the log-probabilities of `Continuations`."""

    unit = "nats per token"

    def answer_logits(self, model: nn.Module, probes: Continuations) -> Tensor:
        """Return the logits that predict each token of the correct continuations."""
        width, options = probes.continuation.shape[1], probes.is_correct.shape[1]
        logits = last_logits(model, probes.batch, width + 1, probes.mask.sum(-1) + 1, options)
        counted = probes.mask.bool() & probes.is_correct.reshape(-1, 1)
        return logits[:, :-1][counted.to(logits.device)]

    def answer_weights(self, probes: Continuations) -> Tensor:
        """Return weights that are equal for all probes and for all tokens of a probe."""
        lengths = probes.mask.sum(-1).double()[probes.is_correct.reshape(-1)]
        n_correct = probes.is_correct.sum(-1)
        options = n_correct.double().repeat_interleave(n_correct)
        return (1 / (lengths * options * len(probes))).repeat_interleave(lengths.long())

    def answer_tokens(self, probes: Continuations) -> list[int]:
        return sorted(set(probes.first_tokens()[probes.is_correct.reshape(-1)].tolist()))


class Preference(ContinuationMargin):
    """Preference margin: best chosen continuation − best rejected one, mean token log-prob.

    `INSUFFICIENT` where all of them together are improbable as first tokens.
    """

    separable = True

    def __call__(self, model: nn.Module, probes: Continuations) -> Margins:
        """Return the lead of the chosen continuations, nats per token."""
        means, first_log_probs, _ = score_continuations(model, probes)
        first = probes.first_tokens().view(probes.is_correct.shape)
        mass = torch.stack(
            [
                log_probs[_index_of_each(tokens)].exp().sum()
                for tokens, log_probs in zip(first, first_log_probs, strict=True)
            ]
        )
        values = preference_margin(means, probes.is_correct.to(means.device))
        return Margins(values, self.insufficiency(mass), mass)

    def insufficiency(self, evidence: Tensor) -> str:
        """Return "" if the first tokens have enough probability, on average over the probes."""
        mass = sum(evidence.tolist()) / len(evidence)
        if mass >= MIN_FIRST_TOKEN_MASS:
            return ""
        return (
            f"chosen and rejected continuations hold {mass:.1%} of the first token's probability; "
            f"at least {MIN_FIRST_TOKEN_MASS:.0%} is needed"
        )

    def losses(self, model: nn.Module, probes: Continuations) -> Tensor:
        """Return −mean log-prob of the best chosen continuation, nats per token."""
        means = score_continuations(model, probes)[0]
        return -means.masked_fill(~probes.is_correct.to(means.device), float("-inf")).amax(-1)


def _index_of_each(tokens: Tensor) -> list[int]:
    """Return the index of each distinct token, so that a shared first token counts once."""
    ids = tokens.tolist()
    return [ids.index(token) for token in dict.fromkeys(ids)]


class Choice(ContinuationMargin):
    """Choice margin: log-prob per token of the correct option − that of the best other one."""

    separable = True

    def __call__(self, model: nn.Module, probes: Continuations) -> Tensor:
        """Return the lead of the correct option, nats per token."""
        means = score_continuations(model, probes)[0]
        return preference_margin(means, probes.is_correct.to(means.device))

    def losses(self, model: nn.Module, probes: Continuations) -> Tensor:
        """Return −mean log-prob of the correct option, nats per token."""
        means = score_continuations(model, probes)[0]
        return -means[probes.is_correct.to(means.device)]


class Likelihood(ContinuationMargin):
    """Likelihood margin: tolerance − (loss now − loss before training), nats per token."""

    separable = True

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.reference: Tensor | None = None

    @property
    def is_calibrated(self) -> bool:
        return self.reference is not None

    def select(self, indices: Sequence[int]) -> Likelihood:
        part = Likelihood(self.tolerance)
        part.reference = None if self.reference is None else self.reference[list(indices)]
        return part

    def calibrate(self, model: nn.Module, probes: Continuations) -> None:
        """Store each text's loss before training."""
        self.reference = self.losses(model, probes).detach()

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        losses = state["reference"]
        if not (isinstance(losses, Tensor) and losses.ndim == 1 and losses.isfinite().all()):
            raise ValueError("the reference must be a finite loss of each text, shape (n_probes,)")
        self.reference = losses

    def __call__(self, model: nn.Module, probes: Continuations) -> Tensor:
        """Return how much of the tolerance is unused, nats per token."""
        if self.reference is None:
            raise BehaviorError(
                "the losses before training are not known; call `calibrate(model, probes)` first"
            )
        losses = self.losses(model, probes)
        if losses.shape != self.reference.shape:  # which might be broadcast
            raise BehaviorError(
                f"{len(losses)} texts and {len(self.reference)} reference losses; "
                "give one reference loss for each text"
            )
        return self.tolerance - (losses - self.reference.to(losses.device))

    def losses(self, model: nn.Module, probes: Continuations) -> Tensor:
        """Return the mean negative log-likelihood of each text, nats per token."""
        return -score_continuations(model, probes)[0].squeeze(-1)
