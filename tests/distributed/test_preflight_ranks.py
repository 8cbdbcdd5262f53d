"""`riprap.preflight` on two ranks: each scores a share, and the result is that of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distributed.preflight_ranks import predict

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


def test_two_ranks_find_what_one_finds() -> None:
    torchrun = str(Path(sys.executable).parent / "torchrun")
    command = [torchrun, "--standalone", "--nproc-per-node", "2", str(HERE / "preflight_ranks.py")]
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, alone = json.loads(done.stdout.strip().splitlines()[-1]), predict()
    assert found["rows"] == alone["rows"]
    for name in ("harm", "slopes"):
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-3, atol=1e-5)
