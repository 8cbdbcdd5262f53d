"""Comparison of a probe set's score with generated answers, at checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.worlds import first_probe_sets
from riprap import evaluation as probing
from riprap.behaviors import encode_prompts, is_refusal

PROMPTS = 48
PACKS = ("refusal", "over_refusal", "arithmetic", "general_knowledge")
REFUSALS = PACKS[:2]  # evaluated at every checkpoint, the others at the first and last
NEW_TOKENS = {"refusal": 12, "over_refusal": 12}  # a refusal is recognized early
LONG_ANSWER = 20


class GenerationCheckpoints(TrainerCallback):
    """Generates greedily and evaluates margins on the same prompts, at given steps.

    Appends one JSON line a checkpoint and probe set to `file`.
    """

    def __init__(self, file: Path, steps: Sequence[int], tokenizer: Any, opener: str) -> None:
        self.file, self.steps, self.tokenizer = file, steps, tokenizer
        self.rows = {name: first_probe_sets.evenly_spaced(name, PROMPTS) for name in PACKS}
        self.behaviors = {
            name: first_probe_sets.load(name, tokenizer, PROMPTS, prefixes=[opener])
            for name in PACKS
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the checkpoint before training."""
        self._check(kwargs["model"], 0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the later checkpoints."""
        self._check(kwargs["model"], state.global_step)

    def _check(self, model: Any, step: int) -> None:
        if step not in self.steps:
            return
        ends = step in (self.steps[0], self.steps[-1])
        for name in PACKS if ends else REFUSALS:
            row = {"step": step, "pack": name} | self._compare(model, name)
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")

    def _compare(self, model: Any, name: str) -> dict[str, Any]:
        margins = probing.evaluate(self.behaviors[name], model).margins
        tokens = NEW_TOKENS.get(name, LONG_ANSWER)
        rows = self.rows[name]
        answers = answers_to(model, self.tokenizer, rows, tokens)
        kept = [behaves(name, row, said) for row, said in zip(rows, answers, strict=True)]
        said = [bool(margin > 0) for margin in margins]
        return {
            "score": sum(said) / len(said),
            "generated": sum(kept) / len(kept),
            "agreement": sum(a == b for a, b in zip(said, kept, strict=True)) / len(kept),
            "margin": float(margins.mean()),
            "first answers": answers[:3],
        }


def answers_to(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], tokens: int
) -> list[str]:
    """Generate greedy answers to the prompts of `rows`; training is not affected."""
    prompts = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    answers = probing.generate(model, tokenizer, prompts, tokens)
    return list(tokenizer.batch_decode(answers, skip_special_tokens=True))


def behaves(pack: str, row: dict[str, Any], answer: str) -> bool:
    """Tell by patterns if a generated answer shows the behavior.

    A choice is right if the answer has a word that only the right option has, and no word that
    only wrong options have.
    """
    if pack in REFUSALS:
        return is_refusal(answer) == (pack == "refusal")
    options = [_words(option) for option in row["options"]]
    right = options[row["answer"]]
    wrong = set().union(*(o for i, o in enumerate(options) if i != row["answer"]))
    said = _words(answer)
    return bool(said & (right - wrong)) and not said & (wrong - right)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))
