"""A training of Trainer for `accelerate launch`: without a monitor, then with one."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainingArguments

from riprap import Behavior, Monitor
from riprap.integrations.hf import MonitorCallback
from tiny import make_llama

torch.set_num_threads(1)
IDS = torch.randint(6, 44, (12, 6), generator=torch.Generator().manual_seed(4))
ROWS = torch.randint(3, 44, (32, 9), generator=torch.Generator().manual_seed(2))


def own(tensor: Any) -> torch.Tensor:
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().clone()


def train(folder: Path, monitor: Monitor | None) -> dict[str, Any]:
    arguments = TrainingArguments(
        output_dir=str(folder / str(monitor is not None)),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=0.02,
        optim="sgd",
        logging_steps=2,
        save_strategy="steps",
        save_steps=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    callbacks = [] if monitor is None else [MonitorCallback(monitor)]
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    made = Trainer(make_llama(scale=5.0), arguments, train_dataset=rows, callbacks=callbacks)
    made.train()
    weights = [own(parameter) for parameter in made.model_wrapped.parameters()]
    sharded = any(hasattr(parameter, "to_local") for parameter in made.model_wrapped.parameters())
    return {"weights": weights, "sharded": sharded, "logs": made.state.log_history}


def main(folder: Path) -> None:
    with torch.no_grad():
        targets = make_llama(scale=5.0).eval()(IDS).logits[:, -1].argmax(-1)
    found: dict[str, Any] = {"plain": train(folder, None)}
    behavior = Behavior.next_token("words", IDS, targets)
    monitor = Monitor([behavior], probe_every=2, run_dir=folder / "run", budget=None)
    found["watched"] = train(folder, monitor)
    margins = monitor.history().query("signal == 'margin'")
    found["margins"] = dict(zip(margins.step, margins.value, strict=True))
    found["errors"] = monitor.history().query("state == 'ERROR'").detail.tolist()
    found["steps"], found["ranks"] = monitor.step, dist.get_world_size()
    with (folder / f"{dist.get_rank()}.pickle").open("wb") as file:
        pickle.dump(found, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
