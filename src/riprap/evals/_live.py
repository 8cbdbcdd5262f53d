"""A model that is evaluated as it is: its answers in chat, and log-likelihoods of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from riprap.behaviors import encode_prompts
from riprap.errors import ConfigError
from riprap.evals._likelihood import (
    Continuation,
    check_pairs,
    encode_pair,
    longest_input,
    score_pairs,
)
from riprap.evaluation import generate

Advance = Callable[[float], object]
PROBE = "Riprap asks this."  # a chat template must show it


@dataclass(frozen=True)
class Live:
    """A model with its tokenizer; no copy is made, and its training state is preserved.

    Attributes:
        system: system message of the chats; None: none.
        batch_size: answers that are generated at once.
    """

    model: nn.Module
    tokenizer: Any
    system: str | None = None
    batch_size: int = 32

    def require_chat(self, task: str, requests: Sequence[str], max_new_tokens: int) -> None:
        """Refuse a model that cannot answer in chat.

        Raises:
            ConfigError: it cannot generate, has no chat template, or one that shows no request; or
                request and answer are longer than what it reads.
        """
        if not callable(getattr(self.model, "generate", None)):
            raise ConfigError(
                f"task {task!r} needs generated answers, and {type(self.model).__name__} has no "
                "`generate`: give a transformers model, or leave the task out"
            )
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                f"task {task!r} asks in chat, and the tokenizer has no chat template: set "
                "tokenizer.chat_template to the one that the model was tuned with, or leave the "
                "task out"
            )
        rows = encode_prompts(self.tokenizer, [PROBE, *requests], self.system)
        turns = [{"role": "user", "content": PROBE}]
        if PROBE not in self.tokenizer.apply_chat_template(turns, tokenize=False):
            raise ConfigError(
                f"task {task!r} asks in chat, and the tokenizer's chat template leaves out what "
                "the user says: set the one that the model was tuned with"
            )
        limit = longest_input(self.model)
        longest = max(map(len, rows))
        if limit is not None and longest + max_new_tokens > limit:
            raise ConfigError(
                f"task {task!r}: a request of {longest:,} tokens and an answer of {max_new_tokens} "
                f"are more than the {limit:,} tokens that the model reads: leave the task out"
            )

    def answers(
        self,
        requests: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        advance: Advance | None = None,
    ) -> list[str]:
        """Generate the answer to each request, without special tokens."""
        prompts = encode_prompts(self.tokenizer, list(requests), self.system)
        rows = generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=self.batch_size,
            advance=advance,
        )
        return list(self.tokenizer.batch_decode(rows, skip_special_tokens=True))

    def require_pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Refuse pairs of a context and a continuation that cannot be scored.

        Raises:
            ConfigError: as `encode_pair` and `score_pairs`.
        """
        check_pairs(self.model, [encode_pair(self.tokenizer, *pair) for pair in pairs])

    def log_likelihoods(
        self, pairs: Sequence[tuple[str, str]], advance: Advance | None = None
    ) -> list[Continuation]:
        """Score each continuation after its context, both as plain text, without a chat."""
        encoded = [encode_pair(self.tokenizer, *pair) for pair in pairs]
        return score_pairs(self.model, encoded, advance)
