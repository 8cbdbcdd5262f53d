"""An interrupted sweep continues; two ranks share directions; both give the same result."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distributed.ranks import SECONDS, free_port, spread
from riprap import Behavior
from riprap.diagnosis.basins._profile import Basin
from riprap.diagnosis.basins._sweep import basin
from riprap.errors import BehaviorError, ConfigError, RiprapError
from tiny import make_llama

pytestmark = pytest.mark.slow

IDS = torch.randint(3, 40, (6, 5), generator=torch.Generator().manual_seed(1))
BEHAVIORS = [
    Behavior.next_token("words", IDS, [9, 11, 30, 12, 7, 8]),
    Behavior.next_token("others", IDS[:4, :3], [4, 11, 3, 20]),
]
JUDGES: dict[str, Callable[[Any], float]] = {"others": lambda model: 0.5}


def sweep(directions: int = 4, seed: int = 3, model: Any = None, **options: Any) -> Basin:
    return basin(model or make_llama(), BEHAVIORS, directions, points=5, seed=seed, **options)


def alike(left: Basin, right: Basin) -> bool:
    return left.behaviors.keys() == right.behaviors.keys() and all(
        np.array_equal(own.scores, right[name].scores) and own.doubtful == right[name].doubtful
        for name, own in left.behaviors.items()
    )


def test_an_interrupted_sweep_continues_to_the_same_result(tmp_path: Path) -> None:
    file, counts = tmp_path / "sub" / "basin.jsonl", []

    def stop(done: int, total: int) -> None:
        assert total == 16
        if done == 10:  # in the third direction
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(resume=file, progress=stop)
    with file.open("a") as torn:
        torn.write('{"direction": 2, "scores": {"wor')
    found = sweep(resume=file, progress=lambda done, total: counts.append((done, total)))
    assert counts == [(done, 8) for done in range(1, 9)]
    assert alike(found, sweep())
    assert alike(sweep(6, resume=file), sweep(6))
    assert alike(sweep(2, resume=file, progress=lambda *_: pytest.fail("measured anew")), sweep(2))


def test_the_file_of_another_sweep_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "basin.jsonl"
    sweep(1, resume=file)
    before = file.read_bytes()
    others: list[tuple[str, Callable[[], Any]]] = [
        ("weights", lambda: sweep(1, model=make_llama(1), resume=file)),
        ("seed", lambda: sweep(1, seed=4, resume=file)),
        ("judges", lambda: sweep(1, judges=JUDGES, resume=file)),
        ("points", lambda: basin(make_llama(), BEHAVIORS, 1, points=7, seed=3, resume=file)),
        ("behaviors", lambda: basin(make_llama(), BEHAVIORS[:1], 1, points=5, seed=3, resume=file)),
    ]
    for what, act in others:
        with pytest.raises(ConfigError, match=f"another sweep, with other {what}"):
            act()
    moved = [BEHAVIORS[0], Behavior.next_token("others", IDS[:4, 1:4], [4, 11, 3, 20])]
    with pytest.raises(ConfigError, match="probes of 'others'"):
        basin(make_llama(), moved, 1, points=5, seed=3, resume=file)
    assert file.read_bytes() == before
    for text in ("my notes\n", '{"some": "json"}\n', "[1, 2]\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"basin\.jsonl"):
            sweep(1, resume=file)
        assert file.read_text() == text


def test_another_device_may_round_the_margins_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "basin.jsonl"
    found = sweep(1, resume=file)
    header, *rows = file.read_text().splitlines()
    changed = json.loads(header)
    changed["margins"]["words"] = [m * (1 + 1e-6) for m in changed["margins"]["words"]]
    file.write_text("\n".join([json.dumps(changed), *rows]) + "\n")
    assert alike(sweep(1, resume=file, progress=lambda *_: pytest.fail("measured anew")), found)


def on_this_rank(folder: Path) -> dict[str, Any]:
    rank = dist.get_rank()
    counts: list[tuple[int, int]] = []
    file = folder / "basin.jsonl"
    out: dict[str, Any] = {"whole": sweep(5, progress=lambda *c: counts.append(c))}
    out |= {"counts": counts, "ddp": sweep(2, model=spread("ddp")[0])}
    sweep(3, resume=file)
    out["resumed"] = sweep(5, resume=file)

    def failing(model: Any, probes: Any) -> Any:
        if rank == 1:
            raise BehaviorError("not here")
        return probes

    refused: dict[str, Callable[[], Any]] = {
        "fsdp": lambda: sweep(2, model=spread("fsdp")[0]),
        "unlike": lambda: sweep(2, model=make_llama(rank)),
        "failing": lambda: basin(make_llama(), [Behavior("b", torch.ones(2), failing)], 2),
    }
    for name, act in refused.items():
        try:
            out[name] = act()
        except RiprapError as error:
            out[name] = str(error)
    return out


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    out = on_this_rank(Path(folder))
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(out))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_share_the_directions_and_both_find_what_one_does(tmp_path: Path) -> None:
    context = mp.start_processes(_rank, (free_port(), str(tmp_path)), 2, join=False)
    ended = any(context.join(timeout=1) for _ in range(3 * SECONDS))
    for process in context.processes:
        process.kill()
    assert ended, "the ranks hung"
    told = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    alone = sweep(5)
    for out, share in zip(told, (3, 2), strict=True):
        assert alike(out["whole"], alone)
        assert alike(out["resumed"], alone)
        assert len(out["counts"]) == 4 * share
        assert alike(out["ddp"], sweep(2, model=make_llama(scale=5.0)))
        assert "sharded by FSDP" in out["fsdp"]
        assert "different weights" in out["unlike"]
        assert "not here" in out["failing"]
    # One process takes over what both ranks had done.
    file = tmp_path / "basin.jsonl"
    whole = sweep(5, resume=file, progress=lambda *_: pytest.fail("measured anew"))
    assert alike(whole, alone)
