"""Behaviors: what the model already does and must go on doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from riprap._checks import NamedCall, checked, named
from riprap._text import MAX_HARMFUL, MAX_NAME_LENGTH, html_table, html_text, shorten
from riprap.behaviors._base import LossFunction, MarginFunction, PlainMargin, ProbeSet
from riprap.behaviors._margin_fns import (
    Choice,
    Continuations,
    Likelihood,
    NextToken,
    Preference,
)
from riprap.behaviors._margin_formulas import Margins
from riprap.behaviors._model_io import TokenBatch
from riprap.behaviors._refusal_judge import is_refusal
from riprap.behaviors._response_prefix_margin import ResponsePrefix
from riprap.behaviors._response_prefixes import find_refusal_prefixes, warn_ambiguous_prefixes
from riprap.behaviors._token_ids import parse_targets, parse_token_rows
from riprap.behaviors._tokenization import (
    Prompt,
    encode_continuations,
    encode_prefixes,
    encode_prompts,
    encode_texts,
)
from riprap.behaviors._user_input import parse_list, parse_texts, prompt_text
from riprap.errors import BehaviorError

DEFAULT_FLOOR = 0.90
SHOWN_PROBES = 3  # in a notebook: how many prompts
MAX_PROMPT = 200  # characters that are kept or shown; of harmful prompts `MAX_HARMFUL`
MAX_ANSWER, MAX_ANSWER_HARMFUL = 100, 30


class Behavior(metaclass=NamedCall):
    """A probe set and a margin; a probe with a margin above 0 passes.

    Args:
        name: name in readings and alerts; unique within a monitor.
        probes: any object that `margins` accepts; a `ProbeSet` can also be split.
        margins: a `MarginFunction`, or a plain function `margins(model, probes)` that returns a
            tensor of shape (n_probes,), attached to the graph, or `Margins`.
        floor: the score (share of margins above 0) under which the behavior is broken.
        losses: for a plain function: `losses(model, probes)`, the protected loss of each probe,
            shape (n_probes,). Signals that need ∇ℓ_b are `NOT_RUN` without it.
        contrast: name of the monitored behavior whose probes are the opposite side of this one's
            direction in activation space (refusal ↔ over_refusal).
        calibrate: for a plain function: `calibrate(model, probes)`, called once before training.

    Attributes:
        texts: the probes' prompts as text, of a conversation its last turn; None for a behavior
            that was made without a tokenizer.
        tokenizer: the tokenizer that the probes were made with, or None.
        categories: category of each probe, as probe sets have it; None: unknown.
        harmful: whether the prompts may be harmful requests, of which a record keeps less; True for
            behaviors that pass where the model refuses. Set it for others.

    Raises:
        BehaviorError: the name is empty or too long, the floor is outside (0, 1], or `margins` is
            not callable.
    """

    def __init__(
        self,
        name: str,
        probes: Any,
        margins: MarginFunction | Callable[[nn.Module, Any], Tensor | Margins],
        floor: float = DEFAULT_FLOOR,
        losses: LossFunction | None = None,
        contrast: str | None = None,
        calibrate: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        if not name or not isinstance(name, str):
            raise BehaviorError(f"a behavior needs a name, got {name!r}")
        if len(name) > MAX_NAME_LENGTH or any("\ud800" <= part <= "\udfff" for part in name):
            raise BehaviorError(
                f"behavior {shorten(name)!r}: a name must have at most {MAX_NAME_LENGTH} "
                "characters, and no half of a surrogate pair"
            )
        if not isinstance(floor, int | float) or not 0 < floor <= 1:
            raise BehaviorError(f"behavior {name!r}: floor {floor!r} is not a score in (0, 1]")
        if not callable(margins):
            raise BehaviorError(
                f"behavior {name!r}: margins must be a function of (model, probes), "
                f"got {type(margins).__name__}"
            )
        if not isinstance(margins, MarginFunction):
            margins = PlainMargin(margins, losses, calibrate)
        elif losses is not None or calibrate is not None:
            raise BehaviorError(
                f"behavior {name!r}: `losses` and `calibrate` belong to a plain margin function; "
                f"{type(margins).__name__} has its own"
            )
        self.name, self.probes, self.margins = name, probes, margins
        self.floor, self.contrast = floor, contrast
        self.texts: list[str] | None = None
        self.tokenizer: Any = None
        self.categories: list[str] | None = None
        self.harmful = False

    def __len__(self) -> int:
        return len(self.probes)

    def __bool__(self) -> bool:
        return True  # probes of your own may have no length

    def __repr__(self) -> str:
        count = self._count()
        probes = "probes" if count is None else f"{count} probes"
        kind = type(self.margins).__name__
        return f"Behavior({shorten(self.name)!r}, {probes}, {kind}, floor={self.floor})"

    def _count(self) -> int | None:
        """Return the number of probes; None where probes of your own may count other things."""
        return len(self) if isinstance(self.probes, ProbeSet | Tensor) else None

    def _repr_html_(self) -> str:
        count = self._count()
        probes = "–" if count is None else count
        cells = [shorten(self.name), probes, type(self.margins).__name__, self.floor]
        text = html_table(["behavior", "probes", "margin", "floor"], [cells])
        first = [self.shorten_prompt(str(own)) for own in (self.texts or [])[:SHOWN_PROBES]]
        items = "".join(html_text(own, "li") for own in first)
        return f"{text}<ul>{items}</ul>" if items else text

    def shorten_prompt(self, text: str) -> str:
        """Return as much of a prompt as may be kept or shown: less if the prompts are harmful."""
        return shorten(text, MAX_HARMFUL if self.harmful else MAX_PROMPT)

    def shorten_answer(self, text: str) -> str:
        """Return as much of a model's answer as may be kept or shown."""
        return shorten(text.strip() or text, MAX_ANSWER_HARMFUL if self.harmful else MAX_ANSWER)

    @property
    def losses(self) -> LossFunction | None:
        """The protected loss of each probe, `losses(model, probes)`; None if there is none."""
        return self.margins.losses

    def token_rows(self) -> list[list[int]] | None:
        """Return the token ids of each probe's prompt; None for probes without token ids."""
        return self.probes.rows() if isinstance(self.probes, ProbeSet) else None

    def subset(self, indices: Sequence[int]) -> Behavior:
        """Return the behavior on the probes at `indices`.

        Raises:
            BehaviorError: there are no indices, or the probes are not a `ProbeSet`.
        """
        chosen = list(indices)
        if not chosen or not isinstance(self.probes, ProbeSet):
            raise BehaviorError(
                f"behavior {self.name!r}: give at least one index, and probes of a constructor of "
                "Behavior or of a class derived from riprap.behaviors.ProbeSet"
            )
        probes, margins = self.probes.select(chosen), self.margins.select(chosen)
        part = Behavior(self.name, probes, margins, self.floor, contrast=self.contrast)
        texts = None if self.texts is None else [self.texts[index] for index in chosen]
        if self.categories is not None:
            part.categories = [self.categories[index] for index in chosen]
        part.harmful = self.harmful
        return part._with_texts(texts, self.tokenizer)

    def _with_texts(self, prompts: Sequence[Prompt] | None, tokenizer: Any) -> Self:
        self.texts = None if prompts is None else [prompt_text(prompt) for prompt in prompts]
        self.tokenizer = tokenizer
        return self

    @checked
    def split(self, n: int, seed: int = 0) -> tuple[Behavior, Behavior]:
        """Split the probes at random: some measure the behavior, the others may be replayed.

        Returns:
            (the behavior on `n` probes, the behavior on the other probes).

        Raises:
            BehaviorError: one of the two would be empty, or the probes are not a `ProbeSet`.
        """
        if not 0 < n < len(self.probes):
            raise BehaviorError(
                f"behavior {self.name!r}: split({n}) of {len(self.probes)} probes leaves one part "
                f"empty; give a number from 1 to {len(self.probes) - 1}"
            )
        order = np.random.default_rng(seed).permutation(len(self.probes)).tolist()
        return self.subset(sorted(order[:n])), self.subset(sorted(order[n:]))

    @classmethod
    @named
    def next_token(
        cls,
        name: str,
        input_ids: Tensor | Sequence[Sequence[int]],
        targets: Tensor | Sequence[int],
        floor: float = DEFAULT_FLOOR,
        contrast: str | None = None,
    ) -> Self:
        """Make a behavior with the token margin: logit of the target − largest other logit.

        Both are read at the last position.

        Args:
            input_ids: shape (n, T), or n lists of token ids of any lengths.
            targets: shape (n,), the correct next token of each probe.

        Raises:
            BehaviorError: there are no probes, or the number of targets differs.
        """
        with _prefix_errors(name):
            rows, parsed = parse_token_rows(input_ids), parse_targets(targets)
            if parsed.shape != (len(rows),):
                raise BehaviorError(
                    f"{len(rows)} probes and targets of shape {tuple(parsed.shape)}; "
                    f"expected ({len(rows)},)"
                )
            probes = TokenBatch.pad(rows)
        return cls(name, probes, NextToken(parsed), floor, contrast=contrast)

    @classmethod
    @named
    def response_prefix(
        cls,
        name: str,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        prefixes: Sequence[str | int | Sequence[int]] | None = None,
        avoid: bool = False,
        floor: float = DEFAULT_FLOOR,
        contrast: str | None = None,
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a behavior with the response prefix margin.

        Above 0 exactly where the greedy response begins with a prefix: at each of its tokens, the
        lead of that token's logit over all others.

        Args:
            prompts: requests, or conversations that end with one; the chat template is applied.
            prefixes: texts with which responses that show the behavior begin, or token ids, each
                a prefix of one token; of a text, the first eight tokens count. None: before
                training, they are found in the refusals that the model itself generates.
            avoid: flip the sign: above 0 where the response does *not* start with a prefix.
            system: system message of the prompts that have none.
            chat_template_kwargs: variables of the chat template, such as `enable_thinking`; by
                default thinking is off, and probes stand where the answer begins.

        Raises:
            BehaviorError: there are no prompts or prefixes, or `avoid` without prefixes.
        """
        with _prefix_errors(name):
            if prefixes is None and avoid:
                raise BehaviorError(
                    "prefixes to avoid cannot be found in the responses to these prompts; give "
                    "`prefixes`, or use those of the refusal behavior"
                )
            rows = [] if prefixes is None else encode_prefixes(tokenizer, prefixes)
            probes = TokenBatch.pad(
                encode_prompts(tokenizer, prompts, system, chat_template_kwargs)
            )
        warn_ambiguous_prefixes(tokenizer, name, rows)
        find = partial(find_refusal_prefixes, tokenizer=tokenizer) if prefixes is None else None
        behavior = cls(name, probes, ResponsePrefix(rows, avoid, find), floor, contrast=contrast)
        behavior.harmful = prefixes is None or (not avoid and any(map(_refuses, prefixes)))
        return behavior._with_texts(prompts, tokenizer)

    @classmethod
    @named
    def preference(
        cls,
        name: str,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        chosen: Sequence[str],
        rejected: Sequence[str],
        floor: float = DEFAULT_FLOOR,
        contrast: str | None = None,
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a behavior with the preference margin: best `chosen` − best `rejected` response.

        Mean token log-probability, teacher-forced. `INSUFFICIENT` while the first tokens of all
        responses together have less than 5 % probability: the margin would measure format.

        Args:
            chosen, rejected: responses, the same ones for all prompts.
            system, chat_template_kwargs: as in `response_prefix`.

        Raises:
            BehaviorError: there are no prompts, or no chosen or rejected responses.
        """
        with _prefix_errors(name):
            chosen = parse_texts(chosen, "chosen", "chosen response")
            rejected = parse_texts(rejected, "rejected", "rejected response")
            if not chosen or not rejected:
                raise BehaviorError("`chosen` and `rejected` need at least one response each")
            options = encode_continuations(tokenizer, chosen)
            options += encode_continuations(tokenizer, rejected)
            rows = encode_prompts(tokenizer, prompts, system, chat_template_kwargs)
        correct = torch.tensor([[True] * len(chosen) + [False] * len(rejected)] * len(rows))
        probes = Continuations.build(rows, [options] * len(rows), correct)
        behavior = cls(name, probes, Preference(), floor, contrast=contrast)
        behavior.harmful = any(map(_refuses, chosen))
        return behavior._with_texts(prompts, tokenizer)

    @classmethod
    @named
    def multiple_choice(
        cls,
        name: str,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        options: Sequence[Sequence[str]],
        right: Sequence[int],
        floor: float = DEFAULT_FLOOR,
        contrast: str | None = None,
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a behavior with the choice margin: right option − best wrong one.

        Log-probability per token, teacher-forced.

        Args:
            options: the options of each prompt, the same number for all, at least two.
            right: the index of each prompt's right option.
            system, chat_template_kwargs: as in `response_prefix`.

        Raises:
            BehaviorError: the numbers of prompts, options and indices do not fit together.
        """
        with _prefix_errors(name):
            rows = encode_prompts(tokenizer, prompts, system, chat_template_kwargs)
            options = [
                parse_texts(own, f"options of prompt {i}", "option", f" of prompt {i}")
                for i, own in enumerate(parse_list(options, "options"))
            ]
            right = parse_list(right, "right")
            counts = {len(own) for own in options}
            if len(options) != len(prompts) or len(right) != len(prompts):
                raise BehaviorError(
                    f"{len(prompts)} prompts, {len(options)} lists of options and {len(right)} "
                    "right answers; give the same number of each"
                )
            if len(counts) != 1 or min(counts) < 2:
                raise BehaviorError("every prompt needs the same number of options, at least two")
            n_options = counts.pop()
            for index, answer in enumerate(right):
                if type(answer) is not int or not 0 <= answer < n_options:
                    raise BehaviorError(
                        f"right answer {answer} of probe {index} is not the index of an option"
                    )
            continuations = [encode_continuations(tokenizer, own) for own in options]
        correct = torch.zeros(len(prompts), n_options, dtype=torch.bool)
        correct[torch.arange(len(prompts)), torch.tensor(right)] = True
        probes = Continuations.build(rows, continuations, correct)
        behavior = cls(name, probes, Choice(), floor, contrast=contrast)
        refused = [_refuses(own[answer]) for own, answer in zip(options, right, strict=True)]
        behavior.harmful = 2 * sum(refused) > len(refused)
        return behavior._with_texts(prompts, tokenizer)

    @classmethod
    @named
    def likelihood(
        cls,
        name: str,
        tokenizer: Any,
        *,
        texts: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        tolerance: float = 0.5,
        floor: float = DEFAULT_FLOOR,
        contrast: str | None = None,
        system: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a behavior with the likelihood margin: tolerance − increase of the text's loss.

        The loss before training is the reference.

        Args:
            texts: texts that must stay likely.
            prompts: for each text the prompt that it answers; None: a text stands alone, and its
                first token is not predicted.
            tolerance: the largest acceptable increase, nats per token.
            system, chat_template_kwargs: as in `response_prefix`; with prompts.

        Raises:
            BehaviorError: the numbers of texts and prompts differ, or the tolerance is not
                positive.
        """
        with _prefix_errors(name):
            if not 0 < tolerance < float("inf"):
                raise BehaviorError(f"tolerance {tolerance} must be positive and finite")
            texts = parse_texts(texts, "texts", "text")
            if prompts is None:
                if system is not None or chat_template_kwargs:
                    raise BehaviorError(
                        "`system` and `chat_template_kwargs` have no effect without prompts"
                    )
                encoded = encode_texts(tokenizer, texts)
                rows, continuations = [r[:1] for r in encoded], [[r[1:]] for r in encoded]
            else:
                if len(texts) != len(prompts):
                    raise BehaviorError(
                        f"{len(prompts)} prompts and {len(texts)} texts; give the same number"
                    )
                rows = encode_prompts(tokenizer, prompts, system, chat_template_kwargs)
                continuations = [[row] for row in encode_continuations(tokenizer, texts)]
        correct = torch.ones(len(rows), 1, dtype=torch.bool)
        probes = Continuations.build(rows, continuations, correct)
        behavior = cls(name, probes, Likelihood(tolerance), floor, contrast=contrast)
        behavior.harmful = prompts is not None and 2 * sum(map(_refuses, texts)) > len(texts)
        return behavior._with_texts(texts if prompts is None else prompts, tokenizer)


def _refuses(response: Any) -> bool:
    """Return whether a response that shows a behavior is a refusal."""
    return isinstance(response, str) and is_refusal(response)


@contextmanager
def _prefix_errors(name: str) -> Iterator[None]:
    """Put the behavior's name before the text of each error."""
    try:
        yield
    except BehaviorError as error:
        raise BehaviorError(f"behavior {name!r}: {error}") from error
