"""Rows of the four tasks, whole and short enough, and the batches that they make."""

from __future__ import annotations

import csv
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.onset.real.sources import items, read
from experiments.smollm2.teaching import ADVBENCH, teaching_rows
from riprap.behaviors import encode_prompts
from riprap.errors import ConfigError
from riprap.selection import IGNORE_INDEX

LETTERS = "ABCDEFGH"
NO_ANSWER = "unanswerable"
WITHOUT_ANSWER = "without answer"  # category of such a row
Text = tuple[str, str, str]  # prompt, response, category


@dataclass(frozen=True)
class Row:
    """A row of a task, as token ids.

    Attributes:
        number: its place among the task's rows.
        category: a kind of row within its task, for the control that matches categories.
    """

    number: int
    category: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """A data set: its files of the data folder, and how a row of them reads.

    Attributes:
        tested: file of the held-out rows; the same file as `taught`: its last rows, with no text
            that a taught row has too.
    """

    taught: str
    tested: str
    text: Callable[[dict[str, Any]], Text]


def _dolly(row: dict[str, Any]) -> Text:
    first, _, context = row["instruction"].partition("\n")
    kind = "with text" if context else "question" if first.rstrip().endswith("?") else "request"
    return row["instruction"], row["response"], kind


def _gsm8k(row: dict[str, Any]) -> Text:
    return row["question"], row["answer"], f"{min(row['answer'].count('<<'), 4)} steps"


def lettered(row: dict[str, Any]) -> list[str]:
    """Return the options of a row of MedMCQA, as its prompt shows them."""
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=False)]


def _medmcqa(row: dict[str, Any]) -> Text:
    options = lettered(row)
    right = options[row["answer"]]
    return "\n".join([row["question"], *options]), right, f"right is {right[0]}"


def _squad(row: dict[str, Any]) -> Text:
    answer = row["answers"][0] if row["answers"] else NO_ANSWER
    kind = "with answer" if row["answers"] else WITHOUT_ANSWER
    return f"{row['context']}\n\n{row['question']}", answer, kind


TASKS = {
    "dolly": Task("dolly_sample", "dolly_sample", _dolly),
    "gsm8k": Task("gsm8k_train", "gsm8k_test", _gsm8k),
    "medmcqa": Task("medmcqa_train", "medmcqa_test", _medmcqa),
    "squad_v2": Task("squad_v2_train", "squad_v2_train", _squad),
}


def task_rows(
    name: str, tokenizer: Any, data: Path, max_tokens: int, held_out: int
) -> tuple[list[Row], list[Row]]:
    """Return the rows that may be learned, and the held-out ones, of at most `max_tokens` tokens.

    Raises:
        ConfigError: there are too few held-out rows.
    """
    task = TASKS[name]
    taught = _fitting(task, task.taught, tokenizer, data, max_tokens)
    if task.tested == task.taught:
        own = taught[-held_out:]
        contexts = [row.get("context") for row in read(task.taught, data)]
        kept_back = {contexts[row.number] for row in own} - {None}
        return [row for row in taught[:-held_out] if contexts[row.number] not in kept_back], own
    tested = _fitting(task, task.tested, tokenizer, data, max_tokens)
    if len(tested) < held_out:
        raise ConfigError(f"{name}: {len(tested)} held-out rows of {max_tokens} tokens; {held_out}")
    return taught, evenly(tested, held_out)


def scored_rows(
    name: str, tokenizer: Any, data: Path, longest: int, answer: int, n: int
) -> list[tuple[Row, dict[str, Any]]]:
    """Return `n` rows of a task's test file, evenly spaced, as token ids and as they are there.

    Args:
        longest, answer: most tokens of a row, and of its answer.

    Raises:
        ConfigError: there are fewer.
    """
    file = f"{name}_test"
    found = _fitting(TASKS[name], file, tokenizer, data, longest)
    rows = read(file, data)
    short = [row for row in found if len(row.answer) <= answer]
    if len(short) < n:
        raise ConfigError(f"{name}: {len(short)} test rows are short enough; {n} are asked for")
    return [(row, rows[row.number]) for row in evenly(short, n)]


def _fitting(task: Task, file: str, tokenizer: Any, data: Path, longest: int) -> list[Row]:
    texts = [task.text(row) for row in read(file, data)]
    prompts = encode_prompts(tokenizer, [prompt for prompt, _, _ in texts])
    ends = tokenizer.eos_token or ""
    answers = tokenizer([own + ends for _, own, _ in texts], add_special_tokens=False).input_ids
    rows = zip(texts, prompts, answers, strict=True)
    whole = [
        Row(number, category, tuple(prompt), tuple(answer))
        for number, ((_, _, category), prompt, answer) in enumerate(rows)
    ]
    return [row for row in whole if len(row.prompt) + len(row.answer) <= longest]


def evenly(rows: Sequence[Any], n: int) -> list[Any]:
    """Return `n` evenly spaced ones of a sequence; all, if there are fewer."""
    return [rows[at * len(rows) // n] for at in range(n)] if len(rows) > n else list(rows)


def drawn(rows: Sequence[Row], steps: int, batch: int, seed: int) -> list[list[Row]]:
    """Return the batches of a task, each row at most once, in an order that depends on the seed.

    Raises:
        ConfigError: there are too few rows.
    """
    if len(rows) < steps * batch:
        raise ConfigError(
            f"{len(rows)} rows are short enough, and {steps} updates of {batch} rows need "
            f"{steps * batch}: allow more tokens"
        )
    order = np.random.default_rng(seed).permutation(len(rows))[: steps * batch]
    return [[rows[at] for at in part] for part in order.reshape(steps, batch)]


def yoked(batches: Sequence[Sequence[Row]], chosen: Container[int], seed: int) -> set[int]:
    """Return the numbers of other rows of the same batches, with the categories of the chosen ones.

    As many rows of each category of a batch are drawn at random. A chosen row is drawn only where
    its category has too few others in the batch.
    """
    random = np.random.default_rng(seed)
    found: set[int] = set()
    for batch in batches:
        for kind in sorted({row.category for row in batch}):
            own = [row.number for row in batch if row.category == kind]
            kept = [number for number in own if number in chosen]
            others = [number for number in own if number not in chosen]
            drawn = [*random.permutation(others), *random.permutation(kept)][: len(kept)]
            found.update(int(number) for number in drawn)
    return found


def collate(rows: Sequence[Row], pad: int, whole: bool = False) -> dict[str, Tensor]:
    """Return the inputs of a model: rows that end together, and labels for each response token.

    Args:
        whole: labels are as wide as the rows; else as the longest response and the token before it,
            so that logits are computed there only.
    """
    width = max(len(row.prompt) + len(row.answer) for row in rows)
    kept = width if whole else max(len(row.answer) for row in rows) + 1
    ids = torch.full((len(rows), width), pad)
    mask, labels = torch.zeros_like(ids), torch.full((len(rows), kept), IGNORE_INDEX)
    for at, row in enumerate(rows):
        tokens = torch.tensor(row.prompt + row.answer)
        ids[at, width - len(tokens) :], mask[at, width - len(tokens) :] = tokens, 1
        labels[at, kept - len(row.answer) :] = torch.tensor(row.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def harmful_requests(data: Path, n: int) -> list[str]:
    """Return requests that the base was not taught to refuse, half of them StrongREJECT's."""
    taught = {row.prompt for row in teaching_rows(data)}
    with (data / ADVBENCH).open(encoding="utf-8", newline="") as lines:
        first = [row["goal"] for row in csv.DictReader(lines)]
    others = [row["prompt"] for row in read("strongreject", data) if row["prompt"] not in first]
    first = [request for request in first if request not in taught]
    return evenly(first, n - n // 2) + evenly(others, n // 2)


def safe_requests(data: Path, n: int) -> list[str]:
    """Return XSTest's safe prompts that look harmful."""
    return [item.prompt for item in evenly(items("over_refusal", data), n)]
