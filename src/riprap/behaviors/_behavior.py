"""A behaviour: something the model already does and must go on doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from riprap._text import MAX_NAME_LENGTH, shorten
from riprap.behaviors import _margin_fns as kinds
from riprap.behaviors._margin_formulas import Margins
from riprap.behaviors._model_io import TokenBatch
from riprap.behaviors._token_ids import token_rows, token_targets
from riprap.behaviors._tokenization import (
    Prompt,
    encode_continuations,
    encode_prompts,
    first_tokens,
)
from riprap.errors import BehaviorError

MarginFunction = Callable[[nn.Module, Any], Tensor | Margins]
LossFunction = Callable[[nn.Module, Any], Tensor]

FLOOR = 0.90


@dataclass(eq=False)
class Behavior:
    """A set of probes and a margin; above 0 a probe still behaves.

    Attributes:
        name: how readings and alerts call it; unique within a monitor.
        probes: whatever `margins` takes.
        margins: `margins(model, probes)` gives a tensor of shape (n_probes,), attached to the
            graph, or a `Margins` that can also say why it is insufficient.
        floor: the score (share of margins above 0) under which the behaviour is broken.
        losses: `losses(model, probes)` gives the protected loss of each probe, shape
            (n_probes,); signals that need ∇ℓ_b are `NOT_RUN` without it.
        contrast: name of the watched behaviour whose probes are the other side of this one's
            direction in activation space (refusal ↔ over_refusal).
        start: called as `start(model, probes)` once before training.

    Raises:
        BehaviorError: the name is empty or too long, or the floor does not lie in (0, 1].
    """

    name: str
    probes: Any
    margins: MarginFunction
    floor: float = FLOOR
    losses: LossFunction | None = None
    contrast: str | None = None
    start: Callable[[nn.Module, Any], None] | None = None

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise BehaviorError(f"a behaviour needs a name, got {self.name!r}")
        if len(self.name) > MAX_NAME_LENGTH or any(
            "\ud800" <= part <= "\udfff" for part in self.name
        ):
            raise BehaviorError(
                f"behaviour {shorten(self.name)!r}: a name has {MAX_NAME_LENGTH} characters at most, and no "
                "half of a surrogate pair"
            )
        if not isinstance(self.floor, int | float) or not 0 < self.floor <= 1:
            raise BehaviorError(
                f"behaviour {self.name!r}: floor {self.floor!r} is not a score in (0, 1]"
            )
        if not callable(self.margins):
            raise BehaviorError(
                f"behaviour {self.name!r}: margins must be a function of (model, probes)"
            )

    @classmethod
    def _of_kind(cls, name: str, kind: Any, probes: Any, floor: float, contrast: str | None) -> Any:
        start = getattr(kind, "start", None)
        return cls(name, probes, kind, floor, kind.losses, contrast, start)

    def subset(self, indices: Sequence[int]) -> Behavior:
        """The same behaviour on some of its probes.

        Raises:
            BehaviorError: no indices, or probes of one's own without `take(indices)`.
        """
        chosen = list(indices)
        if not chosen or not hasattr(self.probes, "take"):
            raise BehaviorError(
                f"behaviour {self.name!r}: give at least one index, and probes of a kind that "
                "Riprap built, or with a method take(indices)"
            )
        kind: Any = self.margins
        probes = self.probes.take(chosen)
        if not hasattr(kind, "losses"):  # a function of one's own, of whatever probes it is given
            return replace(self, probes=probes)
        kind = kind.take(chosen) if hasattr(kind, "take") else kind
        return self._of_kind(self.name, kind, probes, self.floor, self.contrast)

    @classmethod
    def next_token(
        cls,
        name: str,
        input_ids: Tensor | Sequence[Sequence[int]],
        targets: Tensor | Sequence[int],
        floor: float = FLOOR,
        contrast: str | None = None,
    ) -> Behavior:
        """Token margin: logit of the target − largest other logit, last position.

        Args:
            input_ids: shape (n, T), or n token lists of any lengths.
            targets: shape (n,), the right next token of each.

        Raises:
            BehaviorError: no probes, or another number of targets.
        """
        with _named(name):
            rows, wanted = token_rows(input_ids), token_targets(targets)
        if wanted.shape != (len(rows),):
            raise BehaviorError(
                f"behaviour {name!r}: {len(rows)} probes and targets of shape "
                f"{tuple(wanted.shape)}; expected ({len(rows)},)"
            )
        with _named(name):
            probes = TokenBatch.pad(rows)
        return cls._of_kind(name, kinds.NextToken(wanted), probes, floor, contrast)

    @classmethod
    def response_prefix(
        cls,
        name: str,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        openers: Sequence[str | int] | None = None,
        avoid: bool = False,
        floor: float = FLOOR,
        contrast: str | None = None,
    ) -> Behavior:
        """Opening margin: largest opener logit − largest other logit, first response position.

        Args:
            prompts: requests, or conversations that end with one; the chat template is applied.
            openers: texts (their first token counts) or token ids with which the behaviour
                begins. None: learned at the start from the refusals the model itself gives.
            avoid: turn the margin round: above 0 where the response does *not* open so.

        Raises:
            BehaviorError: no prompts or openers, or nothing to learn openers from.
        """
        if openers is None and avoid:
            raise BehaviorError(
                f"behaviour {name!r}: openers to avoid cannot be learned from these prompts; "
                "name them, or take those of the refusal behaviour"
            )
        with _named(name):
            ids = [] if openers is None else first_tokens(tokenizer, openers)
            probes = TokenBatch.pad(encode_prompts(tokenizer, prompts))
        learn = kinds.opener_learner(tokenizer) if openers is None else None
        kind = kinds.Opening(ids, avoid, learn)
        return cls._of_kind(name, kind, probes, floor, contrast)

    @classmethod
    def preference(
        cls,
        name: str,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        keep: Sequence[str],
        lose: Sequence[str],
        floor: float = FLOOR,
        contrast: str | None = None,
    ) -> Behavior:
        """Contrast margin: mean token log-prob, best of `keep` − best of `lose`, teacher-forced.

        `INSUFFICIENT` while keep and lose together hold under 5 % of the first token's
        probability: the margin would measure format.

        Raises:
            BehaviorError: no prompts, or nothing to keep or to lose.
        """
        if not keep or not lose:
            raise BehaviorError(f"behaviour {name!r}: both keep and lose need a continuation")
        with _named(name):
            tails = [r for texts in (keep, lose) for r in encode_continuations(tokenizer, texts)]
            rows = encode_prompts(tokenizer, prompts)
        wanted = torch.tensor([[True] * len(keep) + [False] * len(lose)] * len(rows))
        probes = kinds.Options.build(rows, [tails] * len(rows), wanted)
        return cls._of_kind(name, kinds.Contrast(), probes, floor, contrast)

    @classmethod
    def multiple_choice(
        cls,
        name: str,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        options: Sequence[Sequence[str]],
        answers: Sequence[int],
        floor: float = FLOOR,
        contrast: str | None = None,
    ) -> Behavior:
        """Choice margin: log-prob per token of the right option − that of the best wrong one.

        Args:
            options: for each prompt its options, equally many for all, at least two.
            answers: for each prompt the index of the right one.

        Raises:
            BehaviorError: counts that do not fit together.
        """
        with _named(name):
            rows = encode_prompts(tokenizer, prompts)
        counts = {len(own) for own in options}
        if len(options) != len(prompts) or len(answers) != len(prompts):
            raise BehaviorError(
                f"behaviour {name!r}: {len(prompts)} prompts, {len(options)} lists of options and "
                f"{len(answers)} answers; give equally many"
            )
        if len(counts) != 1 or min(counts) < 2:
            raise BehaviorError(
                f"behaviour {name!r}: every prompt needs the same number of options, two or more"
            )
        width = counts.pop()
        for index, answer in enumerate(answers):
            if type(answer) is not int or not 0 <= answer < width:
                raise BehaviorError(
                    f"behaviour {name!r}: answer {answer} of probe {index} is no option's index"
                )
        wanted = torch.zeros(len(prompts), width, dtype=torch.bool)
        wanted[torch.arange(len(prompts)), torch.tensor(answers)] = True
        with _named(name):
            tails = [encode_continuations(tokenizer, own) for own in options]
        probes = kinds.Options.build(rows, tails, wanted)
        return cls._of_kind(name, kinds.Choice(), probes, floor, contrast)

    @classmethod
    def likelihood(
        cls,
        name: str,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        tolerance: float = 0.5,
        floor: float = FLOOR,
        contrast: str | None = None,
    ) -> Behavior:
        """Likelihood margin: tolerance − (loss now − loss at the start), nats per token.

        Args:
            texts: for each prompt the response whose likelihood must be kept.
            tolerance: by how much it may become more surprising, nats per token.

        Raises:
            BehaviorError: counts that do not fit together, or no tolerance.
        """
        if len(texts) != len(prompts):
            raise BehaviorError(
                f"behaviour {name!r}: {len(prompts)} prompts and {len(texts)} texts; "
                "give equally many"
            )
        if not 0 < tolerance < float("inf"):
            raise BehaviorError(f"behaviour {name!r}: tolerance {tolerance} must be above 0")
        with _named(name):
            rows = encode_prompts(tokenizer, prompts)
            tails = [[row] for row in encode_continuations(tokenizer, texts)]
        wanted = torch.ones(len(prompts), 1, dtype=torch.bool)
        probes = kinds.Options.build(rows, tails, wanted)
        return cls._of_kind(name, kinds.Likelihood(tolerance), probes, floor, contrast)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except BehaviorError as error:
        raise BehaviorError(f"behaviour {name!r}: {error}") from error
