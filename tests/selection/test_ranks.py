"""Two ranks under DDP choose as one process does, and learn the same; sharded models refuse."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distributed.ranks import IDS, SECONDS, free_port, spread, weights
from riprap.errors import ConfigError
from riprap.selection import Selector

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def train(kind: str, strategy: str, accumulate: int) -> dict[str, Any]:
    """Three steps on this rank's share; the weights, and what was taken."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    world = dist.get_world_size() if dist.is_initialized() else 1
    model, optimizer = spread(kind)
    selector = Selector(strategy, 0.25)
    try:
        with selector.attach(model, optimizer, accumulate):
            for ids in IDS[:3]:
                optimizer.zero_grad()
                for part in ids.chunk(world)[rank].chunk(accumulate):
                    (model(part, labels=part).loss / accumulate).backward()
                optimizer.step()
    except ConfigError as error:
        return {"refused": str(error)}
    after = getattr(model, "require_backward_grad_sync", True)
    return {"weights": weights(model), "rows": [t.rows for t in selector.history], "sync": after}


def _rank(rank: int, port: int, kind: str, strategy: str, accumulate: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    out = train(kind, strategy, accumulate)
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(out))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(kind: str, strategy: str, accumulate: int, folder: Path) -> list[dict[str, Any]]:
    context = mp.start_processes(
        _rank, (free_port(), kind, strategy, accumulate, str(folder)), 2, join=False
    )
    ended = any(context.join(timeout=1) for _ in range(3 * SECONDS))
    for process in context.processes:
        process.kill()
    assert ended, f"the ranks hung for {SECONDS} seconds"
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize(("strategy", "accumulate"), [("moderate", 1), ("proxy", 2)])
def test_two_ranks_are_one(strategy: str, accumulate: int, tmp_path: Path) -> None:
    one = train("plain", strategy, 1)
    two = on_ranks("ddp", strategy, accumulate, tmp_path)
    assert two[0]["rows"] == two[1]["rows"] == one["rows"]
    assert len(one["rows"][0]) == 2
    assert all(part["sync"] for part in two)
    for mine, other, alone in zip(*(t["weights"] for t in (*two, one)), strict=True):
        assert torch.equal(mine, other)
        assert torch.allclose(mine, alone, atol=1e-5)


def test_sharded_models_are_refused(tmp_path: Path) -> None:
    for out in on_ranks("fsdp", "moderate", 1, tmp_path):
        assert "sharded by FSDP" in out["refused"]
