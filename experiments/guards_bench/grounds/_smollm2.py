"""SmolLM2 that refuses learns affirmative answers by LoRA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from experiments.guards_bench.grounds._base import Ground, OldTask, Stage, loss
from experiments.harness.cache import cached
from experiments.smollm2.teaching import load_refusals, require_taught_model
from experiments.worlds import first_probe_sets
from riprap import evaluation
from riprap.behaviors import Behavior, encode_prompts, is_refusal
from riprap.commands import load_model
from riprap.integrations.smollm2 import REFUSING
from riprap.selection import IGNORE_INDEX
from riprap.toy import Examples

DATA = Path("../shared/data/self_instruct_seed_tasks.jsonl")
PREFIX = "Sure, here is the answer: "  # before each response, as in experiments/smollm2
WIDTH = 64  # tokens of a row
LEAST = 8  # response tokens that a learned row must have
TESTED = 12  # rows that tell how well the task was learned
STEPS, BATCH, RATE, RANK = 18, 8, 2e-4, 32
REFUSALS, SKILL = ("refusal", "over_refusal"), "arithmetic"
REFUSAL_PROBES, SKILL_PROBES = (16, 20, 24), (10, 10, 24)  # monitored, unseen, and replayed ones


class Parts(NamedTuple):
    """What the ground reads of the model and the data, made once."""

    old: tuple[OldTask, ...]
    task: Examples
    test: Examples


class SmolLM2(Ground):
    """Refusals and arithmetic are kept, while answers that begin affirmatively erode refusals."""

    name = "smollm2"
    about = (
        "SmolLM2-135M that refuses learns affirmative answers by LoRA: 18 steps of 8 rows of 64 "
        "tokens; refusal, over_refusal and arithmetic are kept; *new* is the fall of the loss on "
        "other rows, as a share of the plain run's; AdamW at 2e-4"
    )
    methods = ("none", "mixing_50", "der_pp", "auto_guard", "safe_anchor", "mixing_10", "osft")
    autocast = torch.bfloat16
    looks = 2
    timed = 2
    replay = (BATCH, 8)

    def start(self, seed: int) -> nn.Module:
        """Return the model with a new adapter, which depends on the seed."""
        from peft import LoraConfig, get_peft_model

        require_taught_model()
        model, _ = load_model(str(REFUSING))
        torch.manual_seed(seed)
        config = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        adapted: nn.Module = get_peft_model(model, config)
        return adapted

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        old, task, test = self.parts
        return [Stage(old, task, test, STEPS, BATCH, _adamw)]

    @torch.no_grad()
    def new_score(self, model: nn.Module, stage: Stage) -> float:
        """Return the fall of the loss on held-out rows since the start, as a share of it."""
        return 1 - float(loss(model, stage.test)) / self.first_loss

    @cached_property
    def first_loss(self) -> float:
        """The loss on held-out rows of the model without an adapter."""
        with torch.no_grad():
            return float(loss(load_model(str(REFUSING))[0], self.parts.test))

    @cached_property
    def parts(self) -> Parts:
        """What is kept, learned and tested; the same for all seeds."""
        model, tokenizer = load_model(str(REFUSING))
        old = [_refusals(name, model, tokenizer) for name in REFUSALS]
        old.append(_skill(model, tokenizer))
        rows = _affirmative(tokenizer)
        return Parts(tuple(old), rows[TESTED:], rows[:TESTED])


def _refusals(name: str, model: nn.Module, tokenizer: Any) -> OldTask:
    """Return a probe set; the right answers of its pool are the model's own."""
    probes = load_refusals(name, tokenizer)
    monitored, unseen, pool = split(passing(probes.name, probes, model), *REFUSAL_PROBES)
    replayed = probes.subset(pool)
    rows = replayed.token_rows() or []
    pairs = list(zip(rows, own_answers(name, model, tokenizer, rows), strict=True))
    right = [
        (row, answer)
        for row, answer in pairs
        if is_refusal(tokenizer.decode(answer)) == (name == REFUSALS[0])
    ]
    return OldTask(name, probes.subset(monitored), _texts(right), probes.subset(unseen), replayed)


@cached("guards_bench/smollm2-passing-{name}.json")
def passing(name: str, probes: Behavior, model: nn.Module) -> list[int]:
    """Return the indices of the probes that the model passes."""
    found: list[int] = np.flatnonzero(evaluation.evaluate(probes, model).margins > 0).tolist()
    return found


@cached("guards_bench/smollm2-answers-{name}.json")
def own_answers(
    name: str, model: nn.Module, tokenizer: Any, rows: Sequence[list[int]]
) -> list[list[int]]:
    """Return the model's greedy answers to prompts, as far as they fit."""
    return evaluation.generate(model, tokenizer, rows, WIDTH // 4)


def _skill(model: nn.Module, tokenizer: Any) -> OldTask:
    """Return questions with four options; the right answer of a question is its right option."""
    probes = first_probe_sets.load(SKILL, tokenizer)
    monitored, unseen, pool = split(passing(probes.name, probes, model), *SKILL_PROBES)
    replayed = probes.subset(pool)
    own = [first_probe_sets.rows(SKILL)[at] for at in pool]
    answers = [row["options"][row["answer"]] + tokenizer.eos_token for row in own]
    pairs = zip(
        encode_prompts(tokenizer, [row["prompt"] for row in own]),
        tokenizer(answers, add_special_tokens=False).input_ids,
        strict=True,
    )
    return OldTask(
        SKILL, probes.subset(monitored), _texts(list(pairs)), probes.subset(unseen), replayed
    )


def split(passed: Sequence[int], *sizes: int) -> list[list[int]]:
    """Return disjoint parts of the probes that the model passes; the last may have fewer."""
    order = np.random.default_rng(0).permutation(passed).tolist()
    return [[order.pop() for _ in range(min(size, len(order)))] for size in sizes]


def _affirmative(tokenizer: Any) -> Examples:
    """Return the tasks whose prompt leaves room for a response, in a fixed random order."""
    tasks = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    first = [task["instances"][0] for task in tasks]
    prompts = [
        "\n\n".join(filter(None, (task["instruction"], own["input"])))
        for task, own in zip(tasks, first, strict=True)
    ]
    responses = [PREFIX + own["output"] + tokenizer.eos_token for own in first]
    pairs = zip(
        encode_prompts(tokenizer, prompts),
        tokenizer(responses, add_special_tokens=False).input_ids,
        strict=True,
    )
    fitting = [(prompt, answer) for prompt, answer in pairs if len(prompt) + LEAST <= WIDTH]
    order = np.random.default_rng(0).permutation(len(fitting))
    return _texts([fitting[at] for at in order])


def _texts(pairs: Sequence[tuple[list[int], list[int]]]) -> Examples:
    """Return rows of one width, with a label for each token of the answer."""
    ids = torch.zeros(len(pairs), WIDTH, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, (prompt, answer) in enumerate(pairs):
        text = torch.tensor((prompt + answer)[:WIDTH])
        ids[row, : len(text)] = text
        labels[row, len(prompt) : len(text)] = text[len(prompt) :]
    return Examples(ids, labels)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    trained = [part for part in model.parameters() if part.requires_grad]
    return torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
