"""The example of several ranks, launched as users launch theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from riprap.record import Reader

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
ONE_MACHINE = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
LAUNCHES = {
    "torchrun, DDP": (TORCHRUN, []),
    "torchrun, FSDP2": (TORCHRUN, ["--fsdp"]),
    "accelerate launch": ([*ACCELERATE, *ONE_MACHINE, "--main_process_port", "0"], []),
}


@pytest.mark.parametrize("launch", LAUNCHES)
def test_the_example_runs_and_leaves_one_record(launch: str, tmp_path: Path) -> None:
    start, options = LAUNCHES[launch]
    command = [*start, "examples/ranks.py", "--out", str(tmp_path / "run"), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("broke:") == 1
    with Reader(tmp_path / "run") as reader:
        readings, alerts = reader.readings(), reader.alerts()
    assert max(reading.step for reading in readings) == 40
    assert "critical" in {str(alert.level) for alert in alerts}
    assert not [reading for reading in readings if reading.state == "ERROR"]
