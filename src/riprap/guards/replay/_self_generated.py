"""Old examples without old data: the starting model's own answers, each of them checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors import Behavior, Prompt, encode_prompts
from riprap.errors import ConfigError
from riprap.evaluation import generate
from riprap.guards.replay._self_distillation_buffer import check_disjoint

IGNORED = -100

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
    """Batches of prompts with what the model answers now, for `Replay`, `Lisa` and the like.

    Call it before training. Answers are greedy; those that `check` does not accept are dropped, so
    that nothing is learned again that was wrong to begin with. An answer that was cut off at
    `tokens` is learned without an end. After LwF (Li and Hoiem, 1606.09282) and generative replay
    (Shin et al., 1705.08690); simplified: one greedy answer a prompt, from prompts that are given.

    Args:
        model: a transformers model that can `generate`.
        prompts: texts, or conversations that end with a request.
        check: check(prompt, answer): whether the answer is one to keep.
        measuring: the behaviours that are watched; none of their probes may be among the prompts.
        tokens: the longest answer, in tokens.
        rows: prompts a batch.

    Returns:
        mappings of `input_ids`, `attention_mask` and `labels`, each (rows, longest), padded on the
        right; labels are −100 but on the answers.

    Raises:
        ConfigError: the model cannot generate, a prompt is a probe that measures, or no answer is
            accepted, or `tokens` or `rows` is under 1.
    """
    if min(max_new_tokens, batch_size) < 1:
        raise ConfigError(f"own_answers(tokens={max_new_tokens}, rows={batch_size}): both must be 1 or more")
    if not callable(getattr(model, "generate", None)):
        raise ConfigError(
            f"own_answers: {type(model).__name__} has no generate(): give a transformers model "
            "with a language-model head, or replay `Pools` of probes, which need no answers"
        )
    asked = encode_prompts(tokenizer, prompts)
    for behavior in monitored:
        check_disjoint(behavior.name, asked, behavior)
    answers = generate(model, tokenizer, asked, max_new_tokens)
    said = tokenizer.batch_decode(answers, skip_special_tokens=True)
    kept = [
        (question, answer)
        for prompt, question, answer, text in zip(prompts, asked, answers, said, strict=True)
        if answer and check(prompt, text)
    ]
    if not kept:
        raise ConfigError(
            f"own_answers: none of the model's {len(asked)} answers is accepted; the first is "
            f"{said[0][:80]!r}: does the model show the behaviour at all?"
        )
    dropped = len(asked) - len(kept)
    if dropped:
        text = f"{dropped} of the model's {len(asked)} own answers were not accepted"
        warnings.warn(f"riprap: {text}, and are not learned again", stacklevel=2)
    pad = tokenizer.pad_token_id or 0
    return [_padded_batch(kept[at : at + batch_size], pad) for at in range(0, len(kept), batch_size)]


def _padded_batch(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """Prompts and answers as one padded batch."""
    width = max(len(question) + len(answer) for question, answer in pairs)
    ids = torch.full((len(pairs), width), pad)
    labels = torch.full((len(pairs), width), IGNORED)
    mask = torch.zeros_like(ids)
    for row, (question, answer) in enumerate(pairs):
        end = len(question) + len(answer)
        ids[row, :end] = torch.tensor(question + answer)
        labels[row, len(question) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
