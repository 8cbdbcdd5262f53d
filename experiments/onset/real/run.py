"""Record the runs of the plan with SmolLM2, each once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from experiments.harness.markdown import commit
from experiments.onset.real.plan import Condition, Start
from experiments.onset.real.probes import measure
from experiments.onset.real.recorder import CORPUS, record
from experiments.onset.real.rows import BATCH, MAX_TOKENS, make_batches, make_rows
from experiments.onset.real.sources import DATA, probe_items
from experiments.onset.trace import Trace
from riprap import evaluation
from riprap.behaviors import encode_prompts, is_refusal
from riprap.commands import load_model
from riprap.integrations.smollm2 import REFUSING

RANK = 16
GENERATED, NEW_TOKENS = 8, 12


def path_of(condition: Condition, out: Path) -> Path:
    """Return the file of a run."""
    return out / CORPUS / f"{condition.name}.npz"


def record_run(condition: Condition, out: Path, data: Path = DATA) -> bool:
    """Record a run, unless it is finished; return whether it was recorded now."""
    if path_of(condition, out).exists():
        return False
    began = time.process_time()
    model, tokenizer = load(condition.start)
    measured = measure(condition.start, condition.behaviors, model, tokenizer, data)
    torch.manual_seed(condition.seed)  # the adapter's weights are random
    adapter = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trained: nn.Module = get_peft_model(model, adapter)
    batches = make_batches(tokenizer, make_rows(condition, data))
    refused_before = share_refused(trained, tokenizer, data)
    trace = record(trained, batches, measured, condition)
    trace.about |= {
        "lora_rank": RANK,
        "batch": BATCH,
        "max_tokens": MAX_TOKENS,
        "precision": "bfloat16 base, float32 adapter",
        "commit": commit(),
        "generated_refusals": [refused_before, share_refused(trained, tokenizer, data)],
        "processor_seconds": round(time.process_time() - began, 1),
    }
    trace.save(out)
    return True


def load(start: Start) -> tuple[Any, Any]:
    """Return the start in bfloat16, as LoRA is trained on most machines, and its tokenizer."""
    model, tokenizer = load_model("smollm2" if start == "stock" else str(REFUSING))
    return model.to(torch.bfloat16), tokenizer


def share_refused(model: nn.Module, tokenizer: Any, data: Path) -> float:
    """Return the share of harmful requests that greedy answers refuse; the answers are not kept."""
    every = probe_items("refusal", data)
    prompts = [every[place * len(every) // GENERATED].prompt for place in range(GENERATED)]
    ids = encode_prompts(tokenizer, prompts)
    answers = evaluation.generate(model, tokenizer, ids, NEW_TOKENS)
    said = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return sum(map(is_refusal, said)) / len(said)


def recorded(out: Path, condition: Condition) -> Trace | None:
    """Return the trace of a finished run; None: there is none yet."""
    path = path_of(condition, out)
    return Trace.load(path) if path.exists() else None
