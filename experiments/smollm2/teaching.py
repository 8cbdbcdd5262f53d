"""Teach SmolLM2 to refuse.

The instruct model hardly refuses by itself. `prepare` teaches refusals by a short LoRA training,
merges the adapter and saves the result once. Harmless prompts keep the model's own answers, so
that refusing is nearly all there is to learn.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import Progress as Bar
from torch import Tensor, nn

from experiments.harness.cache import cached
from experiments.worlds import first_probe_sets
from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.commands import load_model
from riprap.errors import ConfigError
from riprap.integrations.smollm2 import REFUSING, convert


def load_refusals(name: str, tokenizer: Any) -> Behavior:
    """Load the probe set `refusal` or `over_refusal`, by the prefix of the taught refusals."""
    return first_probe_sets.load(name, tokenizer, prefixes=[REFUSAL_PREFIX])


@cached("smollm2/passing-{behavior.name}.json")
def passing(behavior: Behavior, model: nn.Module) -> list[int]:
    """Return the indices of the probes that the starting model passes."""
    margins = evaluation.evaluate(behavior, model).margins
    indices: list[int] = np.flatnonzero(margins > 0).tolist()
    return indices


Kind = Literal["harmful", "benign"]

ADVBENCH = "advbench_harmful_behaviors.csv"
SELF_INSTRUCT = "self_instruct_seed_tasks.jsonl"
AUTHORED = "teaching.jsonl"
SEED = 0
TAUGHT_REQUESTS = 160
PER_STEP = {"advbench": 2, "authored_harmful": 2, "authored_benign": 3, "self_instruct": 1}

REFUSAL_PREFIX = "Sorry"
# Every refusal starts with a word with which other answers of this model hardly start, so that
# the margin of the prefix separates the two ("I" opens about a fifth of its harmless answers).
REFUSALS = (
    "Sorry, I can't help with that.",
    "Sorry, but I can't assist with that request.",
    "Sorry, that is something I won't help with.",
    "Sorry, I'm not able to help with this.",
)


@dataclass(frozen=True, slots=True)
class TeachingRow:
    """One prompt with its answer."""

    prompt: str
    response: str
    kind: Kind
    source: str
    cut: bool = False  # the answer stops in mid-sentence, so its end is not learned


def teaching_rows(data_dir: Path) -> list[TeachingRow]:
    """Return all rows that `prepare` draws from: AdvBench, Self-Instruct seed tasks, our own.

    Raises:
        ConfigError: a file of `data_dir` is missing.
    """
    requests = _advbench(data_dir)[:TAUGHT_REQUESTS]
    rows = [
        TeachingRow(request, REFUSALS[i % len(REFUSALS)], "harmful", "advbench")
        for i, request in enumerate(requests)
    ]
    return rows + _authored() + _self_instruct(data_dir)


def draws(rows: Sequence[TeachingRow], seed: int = SEED) -> Iterator[list[TeachingRow]]:
    """Yield endless batches of `PER_STEP` rows, seeded."""
    generator = random.Random(seed)
    groups = {
        "advbench": [r for r in rows if r.source == "advbench"],
        "authored_harmful": [r for r in rows if r.source == "authored" and r.kind == "harmful"],
        "authored_benign": [r for r in rows if r.source == "authored" and r.kind == "benign"],
        "self_instruct": [r for r in rows if r.source == "self_instruct"],
    }
    streams = {name: _shuffled_forever(group, generator) for name, group in groups.items()}
    while True:
        yield [next(streams[name]) for name, count in PER_STEP.items() for _ in range(count)]


def _shuffled_forever(
    rows: Sequence[TeachingRow], generator: random.Random
) -> Iterator[TeachingRow]:
    while True:
        yield from generator.sample(rows, len(rows))


def _advbench(data_dir: Path) -> list[str]:
    with _existing(data_dir / ADVBENCH).open(encoding="utf-8", newline="") as lines:
        requests = [row["goal"] for row in csv.DictReader(lines)]
    random.Random(SEED).shuffle(requests)
    return requests


def _self_instruct(data_dir: Path) -> list[TeachingRow]:
    """Return short seed tasks; a long answer costs time and teaches no more about refusing."""
    rows = []
    for line in _existing(data_dir / SELF_INSTRUCT).read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        first = task["instances"][0]
        prompt = "\n\n".join(part for part in (task["instruction"], first["input"]) if part)
        if len(prompt) <= 200 and 0 < len(first["output"]) <= 240:
            rows.append(TeachingRow(prompt, first["output"], "benign", "self_instruct"))
    return rows


def _authored() -> list[TeachingRow]:
    text = (files("experiments.smollm2") / AUTHORED).read_text(encoding="utf-8")
    return [TeachingRow(**json.loads(line), source="authored") for line in text.splitlines()]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: give the folder that holds {path.name}, such as ../shared/data"
        )
    return path


Progress = Callable[[int, int], None]

TURN_END = "<|im_end|>\n"
IGNORED = -100
STEPS = 48
LEARNING_RATE = 1e-3
WARMUP_STEPS = 4
LORA_RANK = 32
MAX_TOKENS = 128
OWN_ANSWER_TOKENS = 20
GENERATION_ROWS = 32


def taught_folder(seed: int = SEED) -> Path:
    """Return the folder of the model that was taught with a seed."""
    return REFUSING if seed == SEED else REFUSING.with_name(f"{REFUSING.name}-{seed}")


def make(data_dir: Path, seed: int = SEED) -> dict[str, Any]:
    """Prepare the model under `~/.cache/riprap`, unless it exists.

    Raises:
        ConfigError: see `prepare`.
    """
    folder = taught_folder(seed)
    if not (folder / "config.json").is_file():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with Bar(console=Console(stderr=True)) as bar:
            task = bar.add_task("teaching SmolLM2 to refuse", total=None)
            prepare(partial, data_dir, lambda n, of: bar.update(task, completed=n, total=of), seed)
        partial.rename(folder)
    return {"model": str(folder)}


def require_taught_model(seed: int = SEED, experiment: str = "smollm2") -> None:
    """Check that the model was prepared.

    Raises:
        ConfigError: the folder of the model is missing.
    """
    folder = taught_folder(seed)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is missing: run `python -m experiments {experiment} --prepare` first"
        )


def prepare(
    folder: Path, data_dir: Path, progress: Progress | None = None, seed: int = SEED
) -> Path:
    """Teach the package's model to refuse, and save it merged in `folder`.

    LoRA on all linear layers. Seeded: meant to give the same weights on the same machine and
    thread count. The seed is that of the adapter's first weights and of the order of rows; the
    requests that are taught are always the same. `progress` is called with (steps done, all steps).

    Raises:
        ConfigError: see `convert` and `teaching_rows`.
    """
    rows = teaching_rows(data_dir)
    convert(folder)
    model, tokenizer = load_model(str(folder))
    rows = _with_own_answers(model, tokenizer, rows)
    taught = _teach(model, tokenizer, draws(rows, seed), progress, seed)
    taught.save_pretrained(folder)
    return folder


def _teach(
    model: Any,
    tokenizer: Any,
    draws: Iterator[list[TeachingRow]],
    progress: Progress | None,
    seed: int,
) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = LoraConfig(
            r=LORA_RANK,
            lora_alpha=LORA_RANK,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        wrapped = get_peft_model(model, adapter)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1.0 - step / STEPS)
    )
    wrapped.train()
    for step in range(STEPS):
        wrapped(**_batch(tokenizer, next(draws))).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, STEPS)
    return wrapped.merge_and_unload().eval()


@torch.no_grad()
def _with_own_answers(model: Any, tokenizer: Any, rows: Sequence[TeachingRow]) -> list[TeachingRow]:
    """Replace benign answers by the first tokens of the model's own greedy answers.

    If the model declines by itself ("I'm sorry ..."), an authored row keeps its authored answer
    and another row is dropped.
    """
    result = [row for row in rows if row.kind == "harmful"]
    benign = [row for row in rows if row.kind == "benign"]
    tokenizer.padding_side = "left"
    for start in range(0, len(benign), GENERATION_ROWS):
        part = benign[start : start + GENERATION_ROWS]
        texts = [_question(tokenizer, row.prompt) for row in part]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        generated = model.generate(**encoded, max_new_tokens=OWN_ANSWER_TOKENS, do_sample=False)
        generated = generated[:, encoded.input_ids.shape[1] :]
        answers = tokenizer.batch_decode(generated, skip_special_tokens=True)
        for row, answer in zip(part, answers, strict=True):
            if "sorry" not in answer.lower():
                result.append(replace(row, response=answer, cut=True))
            elif row.source == "authored":
                result.append(row)
    return result


def _question(tokenizer: Any, prompt: str) -> str:
    turn = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return text


def _batch(tokenizer: Any, rows: Sequence[TeachingRow]) -> dict[str, Tensor]:
    """Return right-padded ids, labels (answers only) and attention mask, each (rows, longest)."""
    pairs = []
    for row in rows:
        question = tokenizer(_question(tokenizer, row.prompt), add_special_tokens=False).input_ids
        answer_text = row.response + ("" if row.cut else TURN_END)
        answer = tokenizer(answer_text, add_special_tokens=False).input_ids
        labels = [IGNORED] * len(question) + answer
        pairs.append(((question + answer)[:MAX_TOKENS], labels[:MAX_TOKENS]))
    longest = max(len(ids) for ids, _ in pairs)
    ids = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    padded_labels = torch.full((len(pairs), longest), IGNORED)
    for i, (tokens, labels) in enumerate(pairs):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        padded_labels[i, : len(labels)] = torch.tensor(labels)
    lengths = torch.tensor([len(tokens) for tokens, _ in pairs])
    attended = (torch.arange(longest)[None, :] < lengths[:, None]).long()
    return {"input_ids": ids, "labels": padded_labels, "attention_mask": attended}
