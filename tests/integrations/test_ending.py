"""Words to a user of Trainer: the summary and report at the end, and unused callbacks."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integrations.test_trackers import training, watching
from riprap.integrations.hf import MonitorCallback

pytestmark = pytest.mark.filterwarnings("ignore:riprap. behavior")


@pytest.mark.parametrize("extra", [True, False])
def test_the_end_names_summary_record_and_report(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    extra: bool,
) -> None:
    if not extra:
        monkeypatch.setattr(
            "riprap.integrations._ending.is_installed", lambda name: name != "altair"
        )
    monitor = watching(run_dir=tmp_path / "run", stop_on="critical")
    made = training(tmp_path, [MonitorCallback(monitor)], learning_rate=0.05, max_steps=30)
    made.train()
    assert made.state.global_step == monitor.step < 30
    (line,) = [one for one in caplog.messages if "watched" in one]
    assert monitor.summary() in line
    assert f"Record: {tmp_path / 'run' / 'record.sqlite'}" in line
    report = tmp_path / "run" / "report.html"
    assert report.is_file() == extra
    assert (f"Report: {report}" if extra else "pip install 'riprap[report]'") in line


def test_a_callback_that_never_saw_training_says_so_at_exit() -> None:
    script = """
from integrations.test_trackers import watching
from riprap.integrations.hf import MonitorCallback
unused = MonitorCallback(watching())
"""
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | paths,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert done.stderr.count("a MonitorCallback never saw training and did nothing") == 1


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copied_callback_watches_in_place_of_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    first = MonitorCallback(watching())
    twin: Any = copy.deepcopy(first) if way == "deepcopy" else pickle.loads(pickle.dumps(first))
    made = training(tmp_path, [twin], max_steps=3)
    made.train()
    assert (first.monitor.step, twin.monitor.step) == (0, 3)
    assert any("riprap/words/score" in entry for entry in made.state.log_history)
    del first
    assert "never saw training" not in caplog.text
