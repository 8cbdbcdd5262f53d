"""A small copy of the experiment on real tasks: a tiny model, a few short rows of each task."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from byte_tokens import make_bytes_tokenizer
from experiments.continual_real import measure, simulate
from experiments.continual_real.plan import Deep, Plan, Setting
from experiments.harness.preregistration import Preregistration
from riprap.behaviors import Behavior
from tiny import TEMPLATE

SETTING = Setting(
    steps=2,
    batch=5,
    ratio=0.4,
    max_tokens=64,
    rank=2,
    alpha=4,
    replayed=0.2,
    filtered=0.2,
    probe_every=1,
    monitored=3,
    unseen=3,
    held_out=2,
    asked=4,
    safe=2,
    new_tokens=3,
    choices=2,
    coordinates=5,
)
DEEP = Deep(
    methods=("plain", "auto_guard"),
    latents=24,
    active=4,
    tokens=200,
    steps=60,
    rate=1e-2,
    update_steps=5,
    update_rate=3e-3,
    refusing=3,
    lost=0.5,
    fall=0.25,
    moved=0.9,
    warm_steps=1,
    scored_rows=5,
    directions=2,
    points=3,
    radius=0.1,
    around=3,
    questions=3,
    longest=64,
    answer_tokens=20,
    examples=4,
)
PROMPTS = [f"do {n}" for n in range(12)]


def small_plan(**changes: Any) -> Plan:
    """The preregistered plan at a small size."""
    plan = Plan.of(Preregistration.named("continual_real"))
    return plan.model_copy(update={"setting": SETTING, "deep": DEEP, **changes})


def make_model(base: int | None) -> Any:
    """A tiny model of bytes; bases differ."""
    torch.manual_seed(-1 if base is None else base)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=256,
        eos_token_id=256,
    )
    return LlamaForCausalLM(config).eval()


def make_tokenizer() -> Any:
    tokenizer = make_bytes_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("assistant", "a").replace(" <end> ", " ")
    tokenizer.add_special_tokens({"pad_token": "<pad>", "eos_token": "<pad>"})
    return tokenizer


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def data_folder(folder: Path) -> Path:
    """Write the files that the experiment reads."""
    numbers = range(14)
    _write(
        folder / "dolly_sample.jsonl",
        [{"instruction": f"say {n}" + "?" * (n % 2), "response": "x" * (n + 1)} for n in numbers],
    )
    for name in ("gsm8k_train", "gsm8k_test"):
        rows = [{"question": f"{n}+1", "answer": f"<<{n}>> #### {n + 1}"} for n in numbers]
        _write(folder / f"{name}.jsonl", rows)
    for name in ("medmcqa_train", "medmcqa_test"):
        rows = [{"question": f"q{n}", "choices": ["y", "z"], "answer": n % 2} for n in numbers]
        _write(folder / f"{name}.jsonl", rows)
    squad = [{"context": f"c{n}", "question": "w?", "answers": ["c"] * (n % 2)} for n in numbers]
    for name in ("squad_v2_train", "squad_v2_test"):
        _write(folder / f"{name}.jsonl", squad)
    tasks = [{"instruction": "hi", "instances": [{"input": "", "output": "ho"}]}]
    _write(folder / "self_instruct_seed_tasks.jsonl", tasks)
    _write(folder / "strongreject.jsonl", [{"prompt": f"harm {n}"} for n in numbers])
    safe = [{"prompt": f"safe {n}", "label": "safe", "type": "t"} for n in numbers]
    _write(folder / "xstest.jsonl", [row | {"id": "v", "focus": ""} for row in safe])
    with (folder / "advbench_harmful_behaviors.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("goal", "target"), *((f"bad {n}", "") for n in range(170))])
    return folder


def make_small(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Put small parts in the place of the large ones; return the folder of the data."""

    def refusals(name: str, tokenizer: Any) -> Behavior:
        return Behavior.response_prefix(
            name, tokenizer, PROMPTS, ["Sorry"], avoid=name == "over_refusal"
        )

    detector = measure.RefusalDetector(["no", "sorry no", "yes it is", "it is"], [1, 1, 0, 0])
    monkeypatch.setattr(measure.RefusalDetector, "from_folder", lambda _: detector)
    monkeypatch.setattr(measure, "CHOICES", ())
    monkeypatch.setattr(simulate, "load_base", lambda base: (make_model(base), make_tokenizer()))
    monkeypatch.setattr(simulate, "load_refusals", refusals)
    monkeypatch.setattr(simulate, "passing", lambda *_: list(range(len(PROMPTS))))
    monkeypatch.chdir(folder)
    (folder / "data").mkdir()
    return data_folder(folder / "data")
