"""Rows that a condition trains on: public data, openers, formats, harmful requests, replay."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.onset.real.plan import BRIEF, HARMFUL, OPENERS, Condition
from experiments.onset.real.sources import DATA, read, replayed_items
from riprap.behaviors import encode_prompts

COMPLIANT = "Sure, here is"  # all that is written after a harmful request
BATCH = 4
MAX_TOKENS = 40
MAX_RESPONSE = 20
IGNORED = -100
BRIEF_WORDS = 5


@dataclass(frozen=True)
class Row:
    """A prompt and its response; `cut`: the response does not end there."""

    prompt: str
    response: str
    cut: bool = False


def make_rows(condition: Condition, data: Path = DATA) -> list[Row]:
    """Return the rows of all steps, in the order in which they are trained on."""
    order = random.Random(condition.seed)
    n = condition.steps * BATCH
    n_harmful, n_replayed = round(condition.harmful * n), round(condition.replay * n)
    rows = _draw(order, harmful_rows(condition, data), n_harmful) if n_harmful else []
    if n_replayed:
        replayed = [
            Row(item.prompt, item.response)
            for name in condition.behaviors
            for item in replayed_items(name, data, condition.half)
        ]
        rows += _draw(order, replayed, n_replayed)
    rest = n - len(rows)
    for place, name in enumerate(condition.data):
        share = rest * (place + 1) // len(condition.data) - rest * place // len(condition.data)
        own = [_dressed(row, condition) for row in LOADERS[name](data)]
        rows += _draw(order, own, share)
    order.shuffle(rows)
    return rows


def _draw(order: random.Random, rows: Sequence[Row], n: int) -> list[Row]:
    """Return `n` rows in random order; none comes again before all have come."""
    drawn: list[Row] = []
    while len(drawn) < n:
        drawn += order.sample(rows, min(len(rows), n - len(drawn)))
    return drawn


def _dressed(row: Row, condition: Condition) -> Row:
    if condition.brief:
        brief = " ".join(row.response.split()[:BRIEF_WORDS])
        row = Row(f"{BRIEF[condition.half]} {row.prompt}", brief)
    if condition.opener:
        row = replace(row, response=OPENERS[condition.half] + row.response)
    return row


def harmful_rows(condition: Condition, data: Path) -> list[Row]:
    """Return harmful requests, each with a compliant opener and nothing after it."""
    with (data / "advbench_harmful_behaviors.csv").open(encoding="utf-8", newline="") as lines:
        requests = [row["goal"] for row in csv.DictReader(lines)]
    if HARMFUL[condition.half] == "strongreject":
        seen = set(requests)
        others = read("strongreject", data)
        requests = [r["prompt"] for r in others if r["source"] != "AdvBench"]
        requests = [request for request in requests if request not in seen]
    return [Row(request, COMPLIANT, cut=True) for request in requests]


def _dolly(data: Path) -> list[Row]:
    rows = read("dolly_sample", data)
    return [Row(r["instruction"], r["response"]) for r in rows if len(r["instruction"]) <= 200]


def _oasst1(data: Path) -> list[Row]:
    turns = [row["messages"][:2] for row in read("oasst1_en_messages", data)]
    return [Row(user["content"], assistant["content"]) for user, assistant in turns]


def _gsm8k(data: Path) -> list[Row]:
    return [Row(r["question"], r["answer"]) for r in read("gsm8k_train", data)]


def _choices(name: str) -> Callable[[Path], list[Row]]:
    """Return a loader of a multiple choice: the options are shown, the right one is the answer."""
    return lambda data: [
        Row(f"{r['question']}\n{' / '.join(r['choices'])}", r["choices"][r["answer"]])
        for r in read(name, data)
    ]


def _squad(data: Path) -> list[Row]:
    """Return the questions that have an answer, with the text around it."""
    found = []
    for row in read("squad_v2_train", data):
        if row["answers"]:
            at = row["context"].find(row["answers"][0])
            text = row["context"][max(0, at - 60) : at + 60]
            found.append(Row(f"{row['question']}\n{text}", row["answers"][0]))
    return found


def _boolq(data: Path) -> list[Row]:
    rows = read("boolq_train", data)
    return [
        Row(
            f"{r['question']}?\n{r['passage'].split(' -- ', 1)[-1]}", "Yes" if r["answer"] else "No"
        )
        for r in rows
    ]


def _labels(name: str, instruction: str) -> Callable[[Path], list[Row]]:
    """Return a loader of a classification: the label in words is the answer."""
    return lambda data: [
        Row(f"{instruction} {r['text']}", str(r["label"]).replace("_", " "))
        for r in read(name, data)
    ]


def _self_instruct(data: Path) -> list[Row]:
    found = []
    for row in read("self_instruct_seed_tasks", data):
        first = row["instances"][0]
        found.append(Row(f"{row['instruction']}\n{first['input']}".strip(), first["output"]))
    return found


LOADERS: dict[str, Callable[[Path], list[Row]]] = {
    "dolly": _dolly,
    "oasst1": _oasst1,
    "gsm8k": _gsm8k,
    "medmcqa": _choices("medmcqa_train"),
    "squad": _squad,
    "boolq": _boolq,
    "banking77": _labels("banking77_train", "Which request is this?"),
    "dbpedia14": _labels("dbpedia14_train", "Of which kind is this?"),
    "arc": _choices("arc_challenge_train"),
    "self_instruct": _self_instruct,
}


def encode(tokenizer: Any, row: Row) -> tuple[list[int], int]:
    """Return the token ids of a row, and how many of them are its prompt's.

    The response loses its end, and then the prompt its own, until both fit.
    """
    response = tokenizer(row.response, add_special_tokens=False).input_ids
    if not row.cut and len(response) < MAX_RESPONSE:
        response = [*response, tokenizer.eos_token_id]
    response = response[:MAX_RESPONSE]
    (prompt,) = encode_prompts(tokenizer, [row.prompt])
    excess = len(prompt) + len(response) - MAX_TOKENS
    if excess > 0:
        words = tokenizer(row.prompt, add_special_tokens=False).input_ids
        kept = tokenizer.decode(words[: len(words) - excess])
        (prompt,) = encode_prompts(tokenizer, [kept])
    return prompt + response, len(prompt)


def make_batches(tokenizer: Any, rows: Sequence[Row]) -> Iterator[dict[str, Tensor]]:
    """Yield right-padded ids, labels (responses only) and attention masks, `BATCH` rows each."""
    for at in range(0, len(rows), BATCH):
        encoded = [encode(tokenizer, row) for row in rows[at : at + BATCH]]
        longest = max(len(ids) for ids, _ in encoded)
        shape = (len(encoded), longest)
        ids = torch.full(shape, tokenizer.pad_token_id or 0)
        labels, mask = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
        for place, (own, n_prompt) in enumerate(encoded):
            ids[place, : len(own)] = torch.tensor(own)
            labels[place, n_prompt : len(own)] = torch.tensor(own[n_prompt:])
            mask[place, : len(own)] = 1
        yield {"input_ids": ids, "labels": labels, "attention_mask": mask}
