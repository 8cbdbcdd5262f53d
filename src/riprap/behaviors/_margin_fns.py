"""Margin functions by kind: callables `(model, probes) -> margins`, shape (n_probes,).

A kind may also have `losses(model, probes)`, the protected loss of each probe, shape (n_probes,),
and `start(model, probes)`, called once before training to fix what is measured against the start;
then `state_dict()` and `load_state_dict(state)` carry that over to a run that is taken up again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap.behaviors._margin_formulas import (
    Margins,
    best_against_best,
    continuation_log_probs,
    opening_margin,
    token_margin,
)
from riprap.behaviors._model_io import TokenBatch, device_of, last_logits
from riprap.behaviors._response_prefixes import calibrate_openers
from riprap.errors import BehaviorError

MASS_GATE = 0.05  # least first-token probability that keep and lose must hold together


def _check_vocabulary(what: str, tokens: Tensor, logits: Tensor) -> None:
    outside = tokens[(tokens < 0) | (tokens >= logits.shape[-1])]
    if len(outside):
        raise BehaviorError(
            f"{what} token {int(outside[0])} lies outside the model's vocabulary of "
            f"{logits.shape[-1]}: is this the model's own tokenizer?"
        )


class NextToken:
    """Token margin: the right token against the best other one, at the last position."""

    unit = "logits"

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def take(self, indices: list[int]) -> NextToken:
        """The same for the probes at `indices`."""
        return NextToken(self.targets[indices])

    def __call__(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        """Logits by which each target leads."""
        return self.from_logits(last_logits(model, probes)[:, -1])

    def from_logits(self, logits: Tensor) -> Tensor:
        """The same from the last position's logits, shape (n, vocabulary)."""
        _check_vocabulary("target", self.targets, logits)
        return token_margin(logits, self.targets.to(logits.device))

    def losses(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        """Cross-entropy of each target, in nats."""
        logits = last_logits(model, probes)[:, -1]
        return functional.cross_entropy(logits, self.targets.to(logits.device), reduction="none")


class Opening:
    """Opening margin: does the response begin with an opener? With `avoid`: does it not?"""

    unit = "logits"

    def __init__(
        self, openers: Sequence[int], avoid: bool, start: Callable[..., list[int]] | None = None
    ) -> None:
        self.openers = list(openers)
        self.sign = -1.0 if avoid else 1.0
        self.calibrate = start

    def start(self, model: nn.Module, probes: TokenBatch) -> None:
        """Learn the openers from the model itself, where none were given."""
        if self.calibrate is not None and not self.openers:
            self.openers = self.calibrate(model, probes)

    def state_dict(self) -> dict[str, Any]:
        """What was fixed at the start."""
        return {"openers": list(self.openers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it names no openers.
        """
        openers = list(state["openers"])
        if not openers or not all(type(token) is int for token in openers):
            raise ValueError("openers are token ids, one at least")
        self.openers = openers

    def take(self, indices: list[int]) -> Opening:
        """The same for some of the probes, with openers of its own."""
        return Opening(self.openers, self.sign < 0, self.calibrate)

    def _indices(self, logits: Tensor) -> Tensor:
        if not self.openers:
            raise BehaviorError("an opening margin without openers needs `start(model)` first")
        openers = torch.tensor(self.openers, device=logits.device)
        _check_vocabulary("opener", openers, logits)
        return openers

    def __call__(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        """Logits by which the best opener leads (or trails, with `avoid`)."""
        return self.from_logits(last_logits(model, probes)[:, -1])

    def from_logits(self, logits: Tensor) -> Tensor:
        """The same from the first response position's logits, shape (n, vocabulary)."""
        return self.sign * opening_margin(logits, self._indices(logits))

    def losses(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        """−log of the probability that the response opens as it should, in nats."""
        logits = last_logits(model, probes)[:, -1]
        openers = self._indices(logits)
        if self.sign < 0:
            total = logits.logsumexp(-1)
            others = logits.index_fill(-1, openers, float("-inf"))
            return total - others.logsumexp(-1)
        return logits.logsumexp(-1) - logits[:, openers].logsumexp(-1)


@dataclass(frozen=True)
class Options:
    """Prompts crossed with their continuations, teacher-forced.

    Attributes:
        batch: prompt + continuation, one row an option: n_probes × options rows, probe by probe.
        continuation, mask: shape (rows, K), right-aligned ids and 1 on real tokens.
        wanted: shape (n_probes, options), bool.
    """

    batch: TokenBatch
    continuation: Tensor
    mask: Tensor
    wanted: Tensor

    @classmethod
    def build(
        cls, prompts: list[list[int]], options: list[list[list[int]]], wanted: Tensor
    ) -> Options:
        """Cross each prompt with its own options; all probes have equally many."""
        rows = [p + o for p, own in zip(prompts, options, strict=True) for o in own]
        tails = [o for own in options for o in own]
        padded = TokenBatch.pad(tails)
        mask = padded.attention_mask
        return cls(
            TokenBatch.pad(rows),
            padded.input_ids,
            torch.ones_like(padded.input_ids) if mask is None else mask,
            wanted,
        )

    def __len__(self) -> int:
        return len(self.wanted)

    def rows(self) -> list[list[int]]:
        """Token ids of each probe's prompt; of a text alone, those of the text with its prompt."""
        width = self.wanted.shape[1]
        whole = self.batch.rows()[::width]
        if width == 1:
            return whole
        tails = self.mask.sum(-1)[::width].tolist()
        return [row[: len(row) - tail] for row, tail in zip(whole, tails, strict=True)]

    def first_tokens(self) -> Tensor:
        """The first token of each continuation, shape (rows,)."""
        first = (self.continuation.shape[1] - self.mask.sum(-1)).long()[:, None]
        return self.continuation.gather(1, first).squeeze(1)

    def take(self, indices: list[int]) -> Options:
        """The probes at `indices`, each with its options."""
        width = self.wanted.shape[1]
        rows = [index * width + option for index in indices for option in range(width)]
        batch, wanted, mask = self.batch.take(rows), self.wanted[indices], self.mask[rows]
        longest = int(mask.sum(-1).max())
        return Options(batch, self.continuation[rows][:, -longest:], mask[:, -longest:], wanted)


def options_log_probs(model: nn.Module, probes: Options) -> tuple[Tensor, Tensor]:
    """Mean log-prob per option, shape (n, options), and first-token log-probs, same shape."""
    return options_read(model, probes)[:2]


def options_read(model: nn.Module, probes: Options) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the model's own first token after each prompt, shape (n,)."""
    width = probes.continuation.shape[1]
    own, options = probes.mask.sum(-1) + 1, probes.wanted.shape[1]
    logits = last_logits(model, probes.batch, width + 1, own, options)
    continuation = probes.continuation.to(logits.device)
    mask = probes.mask.to(logits.device)
    means = continuation_log_probs(logits, continuation, mask)
    first = (width - mask.sum(-1)).long()
    rows = torch.arange(len(mask), device=logits.device)
    at_first = functional.log_softmax(logits[rows, first].detach(), dim=-1)
    heads = at_first.gather(-1, continuation[rows, first][:, None]).squeeze(-1)
    shape = probes.wanted.shape
    return means.view(shape), heads.view(shape), at_first.argmax(-1).view(shape)[:, 0]


class Contrast:
    """Contrast margin: best keep continuation against best lose continuation, mass-gated."""

    unit = "nats per token"

    def __call__(self, model: nn.Module, probes: Options) -> Margins:
        """Nats per token by which keeping leads; insufficient where both are improbable."""
        means, heads = options_log_probs(model, probes)
        wanted = probes.wanted.to(means.device)
        first = probes.first_tokens().view(probes.wanted.shape)
        mass = sum(
            float(row_heads[_first_of_each(row)].exp().sum())
            for row, row_heads in zip(first, heads, strict=True)
        ) / len(probes)
        low = (
            f"keep and lose hold {mass:.1%} of the first token's probability (gate {MASS_GATE:.0%})"
            if mass < MASS_GATE
            else ""
        )
        return Margins(best_against_best(means, wanted), low)

    def losses(self, model: nn.Module, probes: Options) -> Tensor:
        """−mean log-prob of the best continuation to keep, nats per token."""
        means, _ = options_log_probs(model, probes)
        return -means.masked_fill(~probes.wanted.to(means.device), float("-inf")).amax(-1)


def _first_of_each(tokens: Tensor) -> list[int]:
    """Positions of the distinct tokens, so that a shared first token is counted once."""
    seen: dict[int, int] = {}
    for position, token in enumerate(tokens.tolist()):
        seen.setdefault(token, position)
    return list(seen.values())


class Choice:
    """Choice margin: the right option against the best wrong one, length-normalised."""

    unit = "nats per token"

    def __call__(self, model: nn.Module, probes: Options) -> Tensor:
        """Nats per token by which the right option leads."""
        means, _ = options_log_probs(model, probes)
        return best_against_best(means, probes.wanted.to(means.device))

    def losses(self, model: nn.Module, probes: Options) -> Tensor:
        """−mean log-prob of the right option, nats per token."""
        means, _ = options_log_probs(model, probes)
        return -means[probes.wanted.to(means.device)]


class Likelihood:
    """Likelihood margin: tolerance − (loss now − loss at the start), nats per token."""

    unit = "nats per token"

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.reference: Tensor | None = None

    def take(self, indices: list[int]) -> Likelihood:
        """The same for the probes at `indices`."""
        part = Likelihood(self.tolerance)
        part.reference = None if self.reference is None else self.reference[indices]
        return part

    def start(self, model: nn.Module, probes: Options) -> None:
        """Measure each text's loss at the start."""
        self.reference = self.losses(model, probes).detach()

    def state_dict(self) -> dict[str, Any]:
        """What was fixed at the start."""
        return {"reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it has no finite loss of each text.
        """
        found = state["reference"]
        if not isinstance(found, Tensor) or found.ndim != 1 or not found.isfinite().all():
            raise ValueError("the reference is a finite loss of each text, shape (n_probes,)")
        self.reference = found

    def __call__(self, model: nn.Module, probes: Options) -> Tensor:
        """Nats per token left of the tolerance."""
        if self.reference is None:
            raise BehaviorError("a likelihood margin needs `start(model)` before it is read")
        losses = self.losses(model, probes)
        if losses.shape != self.reference.shape:  # which might be broadcast
            raise BehaviorError(f"{len(losses)} texts, and {len(self.reference)} reference losses")
        return self.tolerance - (losses - self.reference.to(losses.device))

    def losses(self, model: nn.Module, probes: Options) -> Tensor:
        """Mean negative log-likelihood of each text, nats per token."""
        means, _ = options_log_probs(model, probes)
        return -means.squeeze(-1)


def opener_learner(tokenizer: Any) -> Callable[[nn.Module, TokenBatch], list[int]]:
    """A function that learns refusal openers from what the model itself begins with."""

    def learn(model: nn.Module, probes: TokenBatch) -> list[int]:
        return calibrate_openers(model, tokenizer, probes.to(device_of(model)))

    return learn
