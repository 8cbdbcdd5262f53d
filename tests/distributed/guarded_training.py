"""Training of each rank in the tests of guards on several ranks, and its start."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distributed.ranks import IDS, POLICY, SECONDS, behaviors, free_port, spread, weights
from riprap import Monitor, guards
from riprap.guards import Guard, Proposal

LABELS = IDS[2, :4].clone()
LABELS[:, :4] = -100
PAIRS = [({"input_ids": IDS[2, :4]}, LABELS)]

EVERYWHERE: dict[str, Callable[[], Guard]] = {
    "l2_sp_then_clip": lambda: guards.Chain(guards.L2SP(0.5, max_pull=None), guards.Clip(0.3)),
    "kl": lambda: guards.KL(["words"], strength=2.0),
    "constrained_tokens": lambda: guards.ConstrainedTokens(PAIRS, strength=0.5),
    "lisa": lambda: guards.Lisa(
        [{"input_ids": IDS[3, :4], "labels": IDS[3, :4]}], task_steps=2, protected_steps=1
    ),
    "si": lambda: guards.SI(["words"], refresh=1, max_pull=None),
    "ema": lambda: guards.EMA(decay=0.7, every=2),
    "freeze": lambda: guards.Freeze(layers=1),
}
REPLICAS: dict[str, Callable[[], Guard]] = {  # refused where parameters are sharded
    "ewc": lambda: guards.EWC(["words"], max_pull=None),
    "mas": lambda: guards.MAS(["words"], strength=1e-3, max_pull=None),
    "feature_anchor": lambda: guards.FeatureAnchor(["words"]),
}


class Sick(Guard):
    """Finds a behavior that it cannot protect, on all ranks."""

    name = "sick"

    def on_gradients(self, view: Any) -> Proposal:
        self.leave_out(["words"], "the gradient")
        return Proposal(detail="left out")


def train(kind: str, guard: Guard) -> dict[str, Any]:
    """Five steps on this rank's share of each batch; weights and actions."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    world = dist.get_world_size() if dist.is_initialized() else 1
    model, optimizer = spread(kind)
    monitor = Monitor(behaviors()[:1], policy=POLICY, probe_every=3, budget=None)
    try:
        with monitor.watch(model, optimizer, guard=guard):
            for batch in IDS[:5]:
                ids = batch.chunk(world)[rank]
                optimizer.zero_grad()
                model(ids, labels=ids).loss.backward()
                optimizer.step()
    except Exception as error:  # noqa: BLE001 told to the test
        return {"refused": f"{type(error).__name__}: {error}"}
    numbers = [(a.guard, a.applied, a.before, a.after) for a in monitor.actions]
    return {"weights": weights(model), "actions": numbers}


def _rank(rank: int, port: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    out: dict[str, Any] = {}
    for name, make in (EVERYWHERE | REPLICAS | {"sick": Sick}).items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            out[name] = train(kind, make())
        out[name]["said"] = [str(own.message) for own in said]
    with (Path(folder) / f"{rank}.pickle").open("wb") as file:
        pickle.dump(out, file)
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(kind: str, folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks came to."""
    context = mp.start_processes(
        _rank, (free_port(), kind, str(folder)), 2, join=False, start_method="spawn"
    )
    ended = any(context.join(timeout=1) for _ in range(SECONDS))
    for process in context.processes:
        process.kill()
    assert ended, f"the ranks hung for {SECONDS} seconds"
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]
