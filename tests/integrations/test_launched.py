"""Trainer on two ranks, started by `accelerate launch`: bit-identical, one record, all numbers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from riprap.record import Reader, load_state

pytestmark = pytest.mark.slow

ACCELERATE = [str(Path(sys.executable).parent / "accelerate"), "launch"]
RANKS = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
PLAIN = ["--dynamo_backend", "no", "--main_process_port", "0"]
KINDS = {
    "DDP": ["--multi_gpu"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_on_two_ranks(kind: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("trainer_on_ranks.py")
    command = [*ACCELERATE, *KINDS[kind], *RANKS, *PLAIN, str(script), str(tmp_path)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    for rank in found:
        assert rank["ranks"] == 2
        assert rank["plain"]["sharded"] == (kind == "FSDP2")
        pairs = zip(rank["plain"]["weights"], rank["watched"]["weights"], strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
        assert rank["errors"] == []
        assert rank["steps"] == 6
        assert sorted(rank["margins"]) == list(range(7))
        logged = [e["step"] for e in rank["watched"]["logs"] if "riprap/words/margin" in e]
        assert logged == list(range(7))
    assert found[0]["margins"] == pytest.approx(found[1]["margins"])
    with Reader(tmp_path / "run") as reader:
        written = {r.step: r.value for r in reader.readings() if r.signal == "margin"}
    assert written == pytest.approx(found[0]["margins"])
    names = ["riprap.safetensors"] if kind == "DDP" else [f"riprap-{i}.safetensors" for i in (0, 1)]
    for step in (3, 6):
        files = (tmp_path / "True" / f"checkpoint-{step}").glob("riprap*")
        assert sorted(file.name for file in files) == names
    assert load_state(tmp_path / "True" / "checkpoint-3" / names[0])["step"] == 3
    assert done.stderr.count("6 steps watched") == 1  # the summary, from the first rank only
