"""Train the tuned models that `diagnose_cost.py` diagnoses: LoRA adapters of the refusing SmolLM2.

    python -m experiments smollm2 --prepare --data ../shared/data
    python benchmarks/diagnose_pairs.py --out runs/diagnose_pairs

- `sums`: all questions of the probe set `arithmetic`, each with a wrong answer.
- `general`: a few steps on right answers to general questions.

The third pair, `refusal`, is the checkpoint of `riprap watch results/diagnose/eroded.yaml` at step
16: harmless instructions with affirmative openers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from riprap.behaviors import Behavior, probe_sets
from riprap.commands.watch import load_model
from riprap.integrations.smollm2 import REFUSING

BATCH, RANK = 8, 16
STEPS = {"sums": (64, 1e-3), "general": (6, 1e-4)}  # steps, learning rate


def lessons(name: str) -> list[tuple[str, str]]:
    """Return the prompts and responses that a pair is trained on."""
    rows = probe_sets.rows("arithmetic" if name == "sums" else "general_knowledge")
    by = 1 if name == "sums" else 0  # the option after the right one, or the right one
    return [
        (row["prompt"], row["options"][(row["answer"] + by) % len(row["options"])]) for row in rows
    ]


def train(
    model: Any, tokenizer: Any, rows: Sequence[tuple[str, str]], steps: int, rate: float
) -> None:
    """Train the adapters in place."""
    taught = Behavior.likelihood(
        "taught", tokenizer, texts=[text for _, text in rows], prompts=[p for p, _ in rows]
    )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    order = order * (1 + steps * BATCH // len(rows))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for step in range(steps):
        batch = taught.subset(order[step * BATCH : (step + 1) * BATCH])
        assert batch.losses is not None
        loss = batch.losses(model, batch.probes).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}/{steps}: {loss.item():.3f}", flush=True)


def main() -> None:
    from peft import LoraConfig, get_peft_model

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/diagnose_pairs"))
    parser.add_argument("names", nargs="*", default=list(STEPS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.names:
        if (asked.out / name).exists():
            continue
        torch.manual_seed(0)
        model, tokenizer = load_model(str(REFUSING))
        config = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        tuned = get_peft_model(model, config)
        train(tuned, tokenizer, lessons(name), *STEPS[name])
        tuned.save_pretrained(asked.out / name)


if __name__ == "__main__":
    main()
