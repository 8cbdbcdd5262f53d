"""Training of each rank in the tests of several ranks, and its start."""

from __future__ import annotations

import pickle
import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from riprap import AlertPolicy, Behavior, Monitor, signals
from riprap.errors import BehaviorError
from tiny import make_llama, make_tokenizer

STEPS, ROWS = 10, 8
IDS = torch.randint(3, 47, (STEPS, ROWS, 9), generator=torch.Generator().manual_seed(2))
SECONDS = 60
TOKENIZER = make_tokenizer()
THRESHOLD = {"kind": "threshold", "signal": "margin", "side": "above", "value": -1e9}
POLICY = AlertPolicy.parse(
    {"name": "ranks", "detectors": [{"kind": "forecast"}, THRESHOLD]}, "here"
)


def behaviors(broken_rank: int | None = None) -> list[Behavior]:
    probes = Behavior.next_token("words", IDS[0, :4, :5], [9, 11, 30, 12], floor=0.01)
    probes.tokenizer = TOKENIZER
    probes.texts = list(map(TOKENIZER.decode, IDS[0, :4, :5].tolist()))

    def failing(model: Any, ids: Any) -> Any:
        values = model(ids).logits[:, -1, 5]
        if dist.is_initialized() and dist.get_rank() == broken_rank:
            raise BehaviorError("this rank's probes fail")
        return values

    return [probes, Behavior("custom", IDS[1, :4, :6], failing, floor=0.01)]


def spread(kind: str) -> tuple[Any, Any]:
    """The model over the ranks, and its optimizer."""
    model: Any = make_llama(scale=5.0).train()
    if kind == "ddp":
        model = DistributedDataParallel(model)
    elif kind == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    # SGD: Adam would turn the rounding of small gradients into signs.
    return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def train(
    kind: str, run: Path | None, watched: bool, broken_rank: int | None = None
) -> dict[str, Any]:
    """Train on this rank's share of each batch; what came of it."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    world = dist.get_world_size() if dist.is_initialized() else 1
    model, optimizer = spread(kind)
    monitor: Monitor | None = None
    if watched:
        read = [*signals.per_step(), signals.LayerInterference()]
        # Under DDP a budget is left out, because the clocks of the ranks differ.
        budget = 0.03 if kind == "ddp" else None
        monitor = Monitor(
            behaviors(), POLICY, probe_every=3, run_dir=run, signals=read, budget=budget
        )
        monitor.begin(model, optimizer)
        monitor.behaviors[1].margins = behaviors(broken_rank)[1].margins
    for batch in IDS:
        ids = batch.chunk(world)[rank]
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    out: dict[str, Any] = {"weights": weights(model), "random": torch.get_rng_state()}
    out["others"] = [random.getstate(), str(np.random.get_state())]
    out["gradients"] = [own(p.grad) for p in model.parameters() if p.grad is not None]
    out["momentum"] = [own(s["momentum_buffer"]) for s in optimizer.state.values()]
    if monitor is not None:
        monitor.end()
        out["weights after end"] = weights(model)
        history = monitor.history()
        columns = ["step", "behavior", "signal", "value", "state", "layer"]
        out["readings"] = history[columns].values.tolist()
        out["alerts"] = [(a.step, a.behavior, str(a.level)) for a in monitor.alerts]
        out["wrote"] = monitor.record.path is not None
    return out


def train_with_a_change_on_one_rank() -> dict[str, Any]:
    """Train a sharded model; rank 1 changes its part of the weights between steps, twice."""
    model, optimizer = spread("fsdp")
    calm = AlertPolicy.parse({"name": "c", "detectors": [THRESHOLD | {"side": "below"}]}, "here")
    monitor = Monitor(behaviors()[:1], policy=calm, probe_every=3, stop_on="warning", budget=None)
    out: dict[str, Any] = {"stops": []}

    def change() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.to_local().add_(1e-3 * dist.get_rank())

    with monitor.watch(model, optimizer):
        for step, batch in enumerate(IDS[:9], 1):
            optimizer.zero_grad()
            model(batch, labels=batch).loss.backward()
            optimizer.step()
            out["stops"].append(monitor.should_stop)
            if step == 4:
                change()
        (history,) = monitor.behavior_histories.values()
        change()
        monitor.evaluate_last_step()
        out |= {"evaluated": history.step, "reason": monitor.stop_reason}
    return out


def weights(model: Any) -> list[torch.Tensor]:
    return [own(p) for p in model.parameters()]


def own(tensor: Any) -> torch.Tensor:
    """This rank's part, copied."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach().clone()


def _rank(
    rank: int, world: int, port: int, kind: str, folder: str, broken_rank: int | None
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    if kind == "change on one rank":
        out = train_with_a_change_on_one_rank()
    else:
        out = {"plain": train(kind, None, watched=False)}
        out["watched"] = train(kind, Path(folder) / "run", watched=True, broken_rank=broken_rank)
    with (Path(folder) / f"{rank}.pickle").open("wb") as file:
        pickle.dump(out, file)
    dist.barrier()
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def on_ranks(kind: str, folder: Path, broken_rank: int | None = None) -> list[dict[str, Any]]:
    """What each of two ranks came to; a deadlock fails after `SECONDS`."""
    context = mp.start_processes(
        _rank, (2, free_port(), kind, str(folder), broken_rank), 2, join=False, start_method="spawn"
    )
    ended = False
    for _ in range(SECONDS):
        ended = context.join(timeout=1)
        if ended:
            break
    for process in context.processes:
        process.kill()
    assert ended, f"the ranks hung for {SECONDS} seconds"
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]
