"""Self-generated examples: the initial model's answers as replay data, after a check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap._warnings import warn
from riprap.behaviors import Behavior, Prompt, encode_prompts
from riprap.errors import ConfigError
from riprap.evaluation import generate
from riprap.guards.replay._self_distillation_buffer import check_disjoint
from riprap.selection import IGNORE_INDEX

Check = Callable[[Prompt, str], bool]


def self_generated_examples(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    check: Check,
    *,
    monitored: Sequence[Behavior],
    max_new_tokens: int = 32,
    batch_size: int = 8,
) -> list[dict[str, Tensor]]:
    """Generate batches of prompts and the model's current answers, for `Replay`, `Lisa` and others.

    Call it before training. Answers are greedy. Answers that `check` rejects are dropped, so that
    replay does not reinforce wrong answers. An answer that was cut off at `max_new_tokens` has no
    end token. After LwF (Li and Hoiem, 1606.09282) and generative replay (Shin et al., 1705.08690);
    simplified: one greedy answer for each prompt, from given prompts.

    Args:
        model: a transformers model with `generate`.
        prompts: texts, or conversations that end with a request.
        check: check(prompt, answer) returns True for answers to use.
        monitored: the monitored behaviors; none of their probes may be among the prompts.
        max_new_tokens: maximum length of an answer, in tokens.
        batch_size: prompts in each batch.

    Returns:
        mappings of `input_ids`, `attention_mask` and `labels`, each (batch_size, longest), padded
        on the right; labels are −100 except on the answers.

    Raises:
        ConfigError: the model cannot generate, a prompt is a monitored probe, no answer is
            accepted, or `max_new_tokens` or `batch_size` is less than 1.
    """
    if min(max_new_tokens, batch_size) < 1:
        raise ConfigError(
            f"self_generated_examples(max_new_tokens={max_new_tokens}, batch_size={batch_size}): "
            "both must be 1 or more"
        )
    if not callable(getattr(model, "generate", None)):
        raise ConfigError(
            f"self_generated_examples: {type(model).__name__} has no generate(); give a "
            "transformers model with a language-model head, or use a SelfDistillationBuffer of "
            "probes, which needs no answers"
        )
    encoded = encode_prompts(tokenizer, prompts)
    for behavior in monitored:
        check_disjoint(behavior.name, encoded, behavior)
    answers = generate(model, tokenizer, encoded, max_new_tokens)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    accepted = [
        (prompt_ids, answer)
        for prompt, prompt_ids, answer, text in zip(prompts, encoded, answers, texts, strict=True)
        if answer and check(prompt, text)
    ]
    if not accepted:
        raise ConfigError(
            f"self_generated_examples: none of the model's {len(encoded)} answers was accepted; "
            f"the first is {texts[0][:80]!r}; does the model show the behavior at all?"
        )
    rejected = len(encoded) - len(accepted)
    if rejected:
        warn(
            f"{rejected} of the model's {len(encoded)} answers were rejected and are not used",
        )
    pad = tokenizer.pad_token_id or 0
    return [
        _padded_batch(accepted[at : at + batch_size], pad)
        for at in range(0, len(accepted), batch_size)
    ]


def _padded_batch(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """Combine prompts and answers into one padded batch."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.full((len(pairs), width), pad)
    labels = torch.full((len(pairs), width), IGNORE_INDEX)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
