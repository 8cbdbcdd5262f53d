"""A run that can be resumed: its loop, its checkpoints, and what its record must hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from riprap import AlertPolicy, Behavior, Monitor, signals
from riprap.errors import RecordError
from riprap.record import Reader, load_state, save_state
from tiny import PROMPTS, make_llama, make_tokenizer

TOKENIZER = make_tokenizer()
ROWS = torch.randint(3, 47, (400, 9), generator=torch.Generator().manual_seed(2))
TEXTS = ["sorry no", "no", "five", "yes sure here"]


def behaviors() -> list[Behavior]:
    """Behaviors of a kind that stores something at the start, and of one that does not."""
    start = make_llama().eval()
    with torch.no_grad():
        targets = start(ROWS[:6, :5]).logits[:, -1].argmax(-1)
    return [
        Behavior.next_token("words", ROWS[:6, :5], targets, contrast="said"),
        Behavior.likelihood("said", TOKENIZER, texts=TEXTS, prompts=PROMPTS, contrast="words"),
    ]


def monitor(run: Path | None, **options: Any) -> Monitor:
    settings = {"policy": AlertPolicy.default(), "probe_every": 5, "signals": signals.everything()}
    return Monitor(behaviors(), run_dir=run, **(settings | options))


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, the newest last."""
    return sorted(folder.glob("step-*"), key=lambda path: int(path.name.split("-")[1]))


def save(folder: Path, step: int, model: Any, optimizer: Any, watching: Monitor) -> None:
    """A checkpoint, all of it or nothing."""
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    save_state(partial / "monitor.safetensors", watching.state_dict())
    rest = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(rest | {"generator": torch.get_rng_state()}, partial / "rest.pt")
    partial.rename(folder / f"step-{step}")


def train(
    folder: Path,
    steps: int = 30,
    every: int = 4,
    committed: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> Any:
    """Train from the newest checkpoint in `folder`, or from the start; the trained model."""
    model = make_llama(attention_dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(5)
    found = checkpoints(folder)
    watching = monitor(folder / "run", resume=True, **options)
    done = 0
    if found:
        rest = torch.load(found[-1] / "rest.pt", weights_only=True)
        model.load_state_dict(rest["model"])
        optimizer.load_state_dict(rest["optimizer"])
        torch.set_rng_state(rest["generator"])
        done = rest["step"]
        watching.load_state_dict(load_state(found[-1] / "monitor.safetensors"))
    with watching.watch(model.train(), optimizer):
        for step in range(done + 1, steps + 1):
            ids = ROWS[4 * step : 4 * step + 4]
            optimizer.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            if step % every == 0 and step < steps:
                save(folder, step, model, optimizer, watching)
                committed(watching.record.position()["readings"])
    watching.record.close()
    return model


def content(folder: Path) -> dict[str, Any]:
    """All that stands in a record, comparable."""
    with Reader(folder / "run") as reader:
        named = ("words", "said")
        return {
            "readings": reader.readings(),
            "alerts": reader.alerts(),
            "margins": {
                name: {step: m.tobytes() for step, m in reader.margins(name).items()}
                for name in named
            },
        }


def every_row(folder: Path) -> list[Any]:
    """All readings ever committed, in the order of their commit; none where there is no record."""
    try:
        with Reader(folder / "run", superseded=True) as reader:
            return reader.readings()
    except RecordError:  # it has not been made yet
        return []
