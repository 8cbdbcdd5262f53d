"""Guards on two ranks, replicated and sharded, do the same as on one."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from distributed.ranks import free_port
from guards.cases import CASES, Run, lessons, monitor_of, start
from riprap import guards
from riprap.errors import RiprapError
from riprap.record import Reader

STEPS = 8
GUARDS = CASES
# What cannot be had of shards, such as a gradient for each probe, is refused at the start.
OF_EACH_PROBE = {"ewc", "ewc_of_margins", "online_ewc", "mas", "ogd"}
REFUSED: dict[str, set[str]] = {
    "ddp": {"lwf"},
    "fsdp": OF_EACH_PROBE
    | {"two_sided_gpm", "feature_anchor", "feature_anchor_of_drift", "o_lora"}
    | {"lwf", "safe_anchor", "margin_anchor"},
}
SECONDS = 120 + 10 * len(GUARDS)
each = pytest.mark.parametrize("name", GUARDS)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def launch(work: Callable[..., None], *arguments: Any) -> None:
    """`work(rank, world, port, *arguments)` on each of two ranks; a deadlock fails in time."""
    given = (2, free_port(), *arguments)
    context = mp.start_processes(work, given, 2, join=False, start_method="spawn")
    ended = any(context.join(timeout=1) for _ in range(SECONDS))
    for process in context.processes:
        process.kill()
    assert ended, f"the ranks hung for {SECONDS} seconds"


def spread(kind: str) -> nn.Module:
    """The model over the ranks."""
    model: Any = start()
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def train(kind: str, name: str, folder: Path | None = None) -> dict[str, Any]:
    """What came of this rank's share of each batch."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if kind != "alone" else (0, 1)
    case = GUARDS[name]
    run = Run(case(), spread(kind))
    if folder is not None:
        run.monitor = monitor_of(run_dir=folder / name)
    try:
        run.go([(ids.chunk(world)[rank], told.chunk(world)[rank]) for ids, told in lessons(STEPS)])
    except RiprapError as error:
        return {"refused": str(error), "actions": []}
    weights = list(map(whole, run.model.parameters()))
    return {"refused": "", "weights": weights, "actions": run.monitor.actions}


def whole(parameter: Any) -> Tensor:
    own = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return own.detach().clone()


def work(rank: int, world: int, port: int, kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    done = {name: train(kind, name, Path(folder)) for name in GUARDS}
    with (Path(folder) / f"{rank}.pickle").open("wb") as file:
        pickle.dump(done, file)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def ranks(request: Any, tmp_path_factory: Any) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp(request.param)
    launch(work, request.param, str(folder))
    return folder, [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def told(done: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(action.step, action.guard, action.applied) for action in done["actions"]]


@each
def test_they_end_where_one_rank_does(name: str, ranks: Any) -> None:
    outcomes = ranks[1]
    refused = {outcome[name]["refused"] for outcome in outcomes}
    if name in REFUSED[ranks[0].name.rstrip("0123456789")]:
        assert all(refused)
        return
    assert refused == {""}
    alone = train("alone", name)
    assert any(action.applied for action in alone["actions"])
    for outcome in outcomes:
        done = outcome[name]
        for one, two in zip(done["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        assert told(done) == told(alone)
        for one, two in zip(done["actions"], alone["actions"], strict=True):
            for found, expected in ((one.before, two.before), (one.after, two.after)):
                assert found.keys() == expected.keys()
                for key, value in expected.items():
                    np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-4)


@each
def test_rank_zero_alone_writes(name: str, ranks: Any) -> None:
    folder, (first, second) = ranks
    assert told(first[name]) == told(second[name])
    with Reader(folder / name) as reader:  # the other would have been refused the file
        assert [(a.step, a.guard, a.applied) for a in reader.actions()] == told(first[name])


def files_work(rank: int, world: int, port: int, folder: str) -> None:
    """As `work`, sharded, with a ring of files of which one rank's newest is torn."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    ring = Path(folder) / "ring"
    run = Run(guards.Rollback(every=1, checkpoint_dir=ring, keep_learning=False), spread("fsdp"))
    seen = []
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for step, (ids, said) in enumerate(lessons(4), 1):
            if step == 4 and rank == 1:
                (ring / "rollback-3-rank1.safetensors").write_bytes(b"torn")
            run.step(ids.chunk(world)[rank], said.chunk(world)[rank])
            seen.append([whole(parameter) for parameter in run.model.parameters()])
    out = {"weights": seen, "details": [action.detail for action in run.monitor.actions]}
    with (Path(folder) / f"{rank}.pickle").open("wb") as file:
        pickle.dump(out, file)
    dist.barrier()
    dist.destroy_process_group()


def test_what_one_rank_cannot_read_no_rank_goes_back_to(tmp_path: Path) -> None:
    launch(files_work, str(tmp_path))
    outs = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for out in outs:
        assert all(map(torch.equal, out["weights"][3], out["weights"][1]))
        assert "from step 4 to the state of step 2" in out["details"][0]
    assert "another rank could not" in outs[0]["details"][0]
    assert len(list((tmp_path / "ring").iterdir())) == 4  # two steps, two ranks
