"""Projection guards on two ranks: the weights of one rank, or a clear refusal."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distributed.ranks import IDS, POLICY, SECONDS, behaviors, spread
from riprap import Monitor, guards
from riprap.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MADE = {
    "gem": lambda: guards.GEM(refresh=2),
    "update_projection": lambda: guards.UpdateProjection(refresh=2),
    "gpm_then_safegrad": lambda: guards.Chain(guards.GPM(energy=0.9), guards.SafeGrad(refresh=2)),
    "ogd": lambda: guards.OGD(directions=4),
    "two_sided_gpm": lambda: guards.TwoSidedGPM(),
}
REFUSED = {
    "ogd": "per-probe gradients are not available",
    "two_sided_gpm": "needs all rows; use GPM",
}


def train(kind: str, name: str) -> tuple[list[torch.Tensor], list[bool]] | str:
    """Weights of the whole model after training on this rank's share, and which actions applied."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    world = dist.get_world_size() if dist.is_initialized() else 1
    model, optimizer = spread(kind)
    monitor = Monitor(behaviors(), policy=POLICY, probe_every=3, budget=None)
    try:
        monitor.begin(model, optimizer, MADE[name]())
    except ConfigError as error:
        return str(error)
    for batch in IDS[:5]:
        optimizer.zero_grad()
        ids = batch.chunk(world)[rank]
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    applied = [action.applied for action in monitor.actions]
    monitor.end()
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach().clone() for p in whole], applied


def _rank(rank: int, port: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    found = {name: train(kind, name) for name in MADE}
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {name: train("plain", name) for name in [*MADE]}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_come_to_the_weights_of_one(
    kind: str, alone: dict[str, Any], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, kind, str(tmp_path))
    context = mp.start_processes(_rank, arguments, 2, join=False, start_method="spawn")
    ended = any(context.join(timeout=1) for _ in range(3 * SECONDS))
    for process in context.processes:
        process.kill()
    assert ended, "the ranks hung"
    for rank in range(2):
        found: dict[str, Any] = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        for name, (weights, applied) in alone.items():
            if kind == "fsdp" and name in REFUSED:
                assert REFUSED[name] in found[name]
                continue
            assert any(applied), name
            assert found[name][1] == applied, name
            for mine, theirs in zip(found[name][0], weights, strict=True):
                torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3, msg=name)
