"""DeepSpeed's real engine on two processes: observed by forward passes, training untouched."""

from __future__ import annotations

import importlib.util
import os
import pickle
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from riprap import Behavior, Monitor, guards
from riprap.errors import ConfigError
from tiny import make_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
    ),
]
STEPS, ACCUMULATED, ROWS = 6, 2, [[3, 4, 5, 6], [7, 8, 9, 10, 11]]


def one_run(rank: int, stage: int, watched: bool, folder: Path) -> dict[str, Any]:
    import deepspeed

    torch.manual_seed(0)
    model = make_llama()
    settings = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": ACCUMULATED,
        "zero_optimization": {"stage": stage},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
    }
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=settings
    )
    known = Behavior.next_token("known", input_ids=ROWS, targets=[3, 4], floor=0.01)
    monitor = Monitor([known], run_dir=folder / f"{stage}", probe_every=1, budget=None)
    losses: list[float] = []
    torch.manual_seed(10 + rank)

    def train() -> None:
        for _ in range(STEPS * ACCUMULATED):
            rows = torch.randint(3, 40, (4, 8))
            loss = engine(rows, labels=rows).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())

    refused = ""
    if watched:
        try:
            monitor.begin(engine, optimizer, guards.AGEM())
        except ConfigError as error:
            refused = str(error)
        with monitor.watch(engine, optimizer):
            train()
    else:
        train()
    engine.eval()
    last = [engine(torch.tensor([row])).logits[0, -1].detach().double() for row in ROWS]
    margins = []
    for logits, target in zip(last, (3, 4), strict=True):
        right = float(logits[target])
        logits[target] = -torch.inf
        margins.append(right - float(logits.max()))
    history = monitor.behavior_histories["known"]
    return {
        "losses": losses,
        "refused": refused,
        "steps": list(history.steps),
        "read": None if not watched else history.margins[-1].tolist(),
        "alone": margins,
        "wrapped": "step" in vars(optimizer),
        "summary": monitor.summary() if watched else "",
    }


def work(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        DS_ACCELERATOR="cpu",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {
        (stage, watched): one_run(rank, stage, watched, folder)
        for stage in (1, 2, 3)
        for watched in (False, True)
    }
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def test_zero_stages_are_observed_on_all_ranks(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    mp.spawn(work, (port, tmp_path), nprocs=2)
    ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for found in ranks:
        for stage in (1, 2, 3):
            plain, watched = found[stage, False], found[stage, True]
            assert watched["losses"] == plain["losses"]
            assert watched["alone"] == plain["alone"]
            assert watched["steps"] == list(range(STEPS + 1))
            np.testing.assert_allclose(watched["read"], watched["alone"], atol=1e-5)
            assert "where no gradient or update can be changed" in watched["refused"]
            assert "forward passes" in watched["summary"]
            assert not watched["wrapped"]
    assert ranks[0][3, True]["read"] == ranks[1][3, True]["read"]
