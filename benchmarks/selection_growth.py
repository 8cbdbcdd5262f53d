"""Cost of selection by size of the batch and length of a row, on a small Llama.

Part of `selection_cost.py growth`: ratios to a plain step, and their figure.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from rich.progress import track
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from riprap.report import apply_style, save_figure

VOCABULARY, WIDEST = 1024, 512
ROWS, WIDTHS = (2, 4, 8, 16, 32), (16, 32, 64, 128, 256)
FIXED_ROWS, FIXED_WIDTH = 8, 64
FIGURE = Path(__file__).with_name("selection_growth.png")


def small() -> Any:
    """A Llama of 1.8 M parameters under LoRA of rank 8 on all linear layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=WIDEST,
        use_cache=False,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM(config), lora).train()


def random_batches(rows: int, width: int, count: int = 4) -> list[dict[str, Tensor]]:
    """Random tokens; the second half of each row is learned."""
    made = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids = torch.randint(VOCABULARY, (rows, width), generator=made)
        labels = ids.clone()
        labels[:, : width // 2] = -100
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def growth(measure: Any, methods: list[str], rounds: int) -> pd.DataFrame:
    """Compute medians over rounds; `measure` is `selection_cost.ratios`."""
    points = [("rows", rows, FIXED_WIDTH) for rows in ROWS]
    points += [("tokens per row", FIXED_ROWS, width) for width in WIDTHS]
    model, found = small(), []
    for by, rows, width in track(points, description="sizes", transient=True):
        given = random_batches(rows, width)
        for method, pairs in measure(model, given, methods, rounds).items():
            size = rows if by == "rows" else width
            # A step is too short to separate the program's seconds from the system's.
            whole = [one[1] for one in pairs]
            row = {"by": by, "size": size, "method": method, "ratio": statistics.median(whole)}
            found.append(row | {"low": min(whole), "high": max(whole)})
    return pd.DataFrame(found)


def draw(frame: pd.DataFrame) -> Path:
    """Draw two panels, by rows and by tokens per row; bars span all rounds."""
    titles = {
        "rows": f"rows of {FIXED_WIDTH} tokens in a batch",
        "tokens per row": f"tokens in each of {FIXED_ROWS} rows",
    }
    panels = []
    for by, title in titles.items():
        own = frame[frame.by == by]
        x = alt.X(
            "size:Q",
            title=title,
            scale=alt.Scale(type="log", base=2),
            axis=alt.Axis(values=sorted(set(own["size"])), titleLimit=300),
        )
        y = alt.Y("ratio:Q", title="÷ plain step", scale=alt.Scale(domainMin=0))
        color = alt.Color("method:N", title=None, legend=alt.Legend(symbolOpacity=1))
        base = alt.Chart(own).encode(x=x, color=color)
        plain = alt.Chart(pd.DataFrame({"ratio": [1.0]})).mark_rule(strokeDash=[4, 3])
        bars = base.mark_rule(opacity=0.4).encode(y=alt.Y("low:Q", title="÷ plain step"), y2="high")
        lines = base.mark_line(point=True).encode(y=y)
        layers = alt.layer(plain.encode(y="ratio:Q"), bars, lines)
        panels.append(layers.properties(width=300, height=220))
    chart = alt.hconcat(*panels, spacing=30).resolve_scale(y="shared")
    return save_figure(apply_style(chart), FIGURE)


def report(measure: Any, methods: list[str], rounds: int) -> None:
    """Print the tables and draw the figure."""
    frame = growth(measure, methods, rounds)
    for by, own in frame.groupby("by"):
        table = own.pivot(index="method", columns="size", values="ratio").round(3)
        print(f"| {by} | " + " | ".join(map(str, table.columns)) + " |")
        print("|---" * (len(table.columns) + 1) + "|")
        for method, values in table.iterrows():
            print(f"| {method} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
        print()
    print(draw(frame))
