"""The page of the SmolLM2 experiment, from a recorded run of the toy world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.harness.recorded_run import train_monitored
from experiments.smollm2 import study
from experiments.smollm2.simulate import AGES, CHECKPOINTS
from experiments.worlds import ToyWorld
from riprap.detectors import AlertPolicy

STEPS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> study.Run:
    folder: Path = tmp_path_factory.mktemp("run")
    policy = AlertPolicy.default()
    train_monitored(ToyWorld(), "C", 0, folder / "record", policy, steps=STEPS, every=1)
    row = {"score": 1.0, "generated": 0.5, "agreement": 0.5, "margin": 2.0}
    lines = [row | {"pack": "refusal", "step": step} for step in (0, 4, 4)]
    lines[-1]["score"] = 0.25
    (folder / "record" / CHECKPOINTS).write_text("\n".join(map(json.dumps, lines)))
    rising = np.arange(float(STEPS))
    stale = np.tile(rising, (len(AGES), 1))
    arrays = {"predicted/B": rising, "realised/B": 2 * rising, "stale/B": stale}
    return study.Run.load("affirmative", folder / "record", arrays)


def test_the_last_line_of_a_checkpoint_counts(run: study.Run) -> None:
    assert [(row["step"], row["score"]) for row in run.checkpoints] == [(0, 1.0), (4, 0.25)]


def test_the_page_has_every_behavior_and_age(run: study.Run) -> None:
    page = study.sections([run], None)["runs"]
    assert "| B | 0 | 1.000 | 2.00 | 4 |" in page
    assert f"| B | {AGES[-1]} | 1.000 | 2.00 | 4 |" in page
    assert "| refusal | 4 | 0.250 | 0.500 | 0.500 | 2.00 |" in page
    assert all(f"\n| {name} |" in page for name in ("A", "B", "over_refusal"))


def test_the_figure_has_a_panel_for_each_run(run: study.Run) -> None:
    assert len(study.claim_figure([run, run]).to_dict()["hconcat"]) == 2
