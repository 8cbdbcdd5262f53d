"""Configuration of a run that takes seconds: folder of a tiny model, rows, probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from riprap.commands.watch import WatchConfig
from tiny import PROMPTS, make_llama, make_tokenizer

COLORS, NUMBERS = ("red", "blue", "green"), ("one", "two", "three", "four", "five")


def write_config(folder: Path, **changes: Any) -> Path:
    """Write a configuration file and all files that it names; `changes` replace keys."""
    folder.mkdir(exist_ok=True)
    if not (folder / "model").exists():
        make_llama(attention_dropout=0.1).save_pretrained(folder / "model")
        make_tokenizer().save_pretrained(folder / "model")
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        rows = [
            {"prompt": f"what is {a} plus {b}", "response": f"sure {c} {'yes ' * i}"}
            for i, c in enumerate(COLORS)
            for a in NUMBERS
            for b in NUMBERS
        ]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    training = {
        "max_steps": 9,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    document = {
        "model": str(folder / "model"),
        "data": {"path": str(folder / "rows.jsonl")},
        "training": training | changes.pop("training", {}),
        "lora": {"rank": 2, "alpha": 4},
        "behaviors": [
            {
                "name": "never sorry",
                "prompts": str(folder / "prompts.txt"),
                "prefixes": ["sorry"],
                "avoid": True,
            }
        ],
        "probe_every": 3,
        "run_dir": str(folder / "run"),
    }
    file = folder / "watch.yaml"
    file.write_text(yaml.safe_dump(document | changes))
    return file


def config(folder: Path, **changes: Any) -> WatchConfig:
    """Load the same configuration."""
    return WatchConfig.load(write_config(folder, **changes))


def tree(folder: Path) -> dict[str, int]:
    """List all files under a folder, with the time of their last change."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}
