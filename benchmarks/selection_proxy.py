"""Rank correlation of the proxy, and of the loss alone, with the exact gradient norm.

    python benchmarks/selection_proxy.py

The aligned model of the continual world (seed 1000) with a LoRA adapter: at its start, and after 40
steps. Batches have 16 rows of one task: as they come, of one format only, or of 1 to 6 rows joined,
so that lengths differ. Spearman within a batch, mean ± sd over batches. Runs in under a minute once
the world is trained, and in about three minutes before.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from experiments.worlds.continual import ContinualWorld
from experiments.worlds.continual_model import adapted
from experiments.worlds.continual_rows import Rows
from riprap.selection import score

TASKS = ("sorting", "reversal", "arithmetic")
ROWS, MOST, STEPS, SEED = 16, 6, 40, 1000
Batch = dict[str, Tensor]


def drawn(rows: Rows, made: torch.Generator) -> Batch:
    """Draw a batch of rows."""
    return rows[torch.randint(len(rows), (ROWS,), generator=made)].batch


def joined(rows: Rows, made: torch.Generator) -> Batch:
    """Join several rows in each, as turns of a conversation."""
    parts = []
    for _ in range(ROWS):
        count = int(torch.randint(1, MOST + 1, (1,), generator=made))
        some = rows[torch.randint(len(rows), (count,), generator=made)]
        there = some.input_ids != 0
        parts.append((some.input_ids[there], some.labels[there]))
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([one for one, _ in parts], batch_first=True)
    labels = pad([one for _, one in parts], batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def ranks(model: torch.nn.Module, batches: list[Batch]) -> str:
    """Compute the correlations of the proxy and of the loss with the norm."""
    found = []
    for batch in batches:
        own = score(model, batch, needs={"norm", "proxy"})
        found.append([spearmanr(own.norm, other).statistic for other in (own.proxy, own.loss)])
    pairs = zip(np.mean(found, 0), np.std(found, 0), strict=True)
    return " | ".join(f"{mean:.2f} ± {sd:.2f}" for mean, sd in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=12)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    world = ContinualWorld()
    base = world.aligned(SEED)
    print("| LoRA | task | rows | proxy | loss alone |", "|---" * 5 + "|", sep="\n")
    for steps in (0, STEPS):
        for task in TASKS:
            model = adapted(copy.deepcopy(base), world.config, 0)
            optimizer = torch.optim.AdamW(
                [p for p in model.parameters() if p.requires_grad], lr=world.config.rate
            )
            source, made = world.batches(task, 0), torch.Generator().manual_seed(0)
            for _ in range(steps):
                model(**next(source).batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            rows = world.rows(task)
            kinds = {
                "as they come": [drawn(rows, made) for _ in range(asked.batches)],
                "one format": [drawn(rows[rows.category == 0], made) for _ in range(asked.batches)],
                "1 to 6 joined": [joined(rows, made) for _ in range(asked.batches)],
            }
            where = "at its start" if steps == 0 else f"after {steps} steps"
            for name, batches in kinds.items():
                print(f"| {where} | {task} | {name} | {ranks(model, batches)} |", flush=True)


if __name__ == "__main__":
    main()
