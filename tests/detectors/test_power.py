"""The power of a probe set is that of counting its probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from byte_tokens import make_bytes_tokenizer
from riprap import Behavior, Monitor, probe_sets
from riprap.detectors import Power, score
from riprap.report import load_run
from riprap.report._summary import power_text


def margins(passing: int, n: int) -> np.ndarray:
    return np.where(np.arange(n) < passing, 1.0, -1.0)


@pytest.mark.parametrize("n", [1, 5, 10, 24, 48, 200])
@pytest.mark.parametrize("floor", [0.5, 0.9, 1.0])
def test_it_is_that_of_drawn_probes(n: int, floor: float) -> None:
    power = Power.of(margins(n, n), floor)
    assert power.seen_below is not None
    lost = sum(
        stats.binom.pmf(k, n, power.seen_below)
        for k in range(n + 1)
        if score(margins(k, n)) < floor
    )
    assert lost == pytest.approx(0.8)
    for failed in range(n + 1):
        is_broken = score(margins(n - failed, n)) < floor
        assert is_broken == (failed > power.spare)


def test_words() -> None:
    assert str(Power.of(margins(24, 24), 0.9)).startswith(
        "24 probes: the behavior is broken when 3 more"
    )
    assert "is broken when 1 more fails;" in str(Power.of(margins(9, 10), 0.9))
    assert str(Power.of(margins(5, 10), 0.9)) == "10 probes: the score is under the floor"


def test_groups_and_the_time_of_the_next_evaluation_are_named() -> None:
    power = Power.of(margins(24, 24), 0.9, categories=["a", "b", "c"] * 8, within=20)
    assert str(power).startswith("24 probes in 3 groups: the behavior is")
    assert str(power).endswith(
        "in 4 of 5 cases, within 20 steps; a smaller fall is seen more rarely"
    )


@pytest.mark.parametrize(
    ("options", "steps", "within"),
    [
        ({"budget": None}, None, 20),
        ({"budget": None}, 7, 7),
        ({"budget": 0.5}, None, 100),
        ({"budget": 0.5, "probe_every": 3}, 60, 15),
    ],
)
def test_a_run_says_it_at_the_start_and_in_its_report(
    options: Any,
    steps: int | None,
    within: int,
    small_net: nn.Module,
    memory: Behavior,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory.categories = [f"group {at % 3}" for at in range(24)]
    monitor = Monitor([memory], run_dir=tmp_path, **options)
    optimizer = torch.optim.SGD(small_net.parameters(), lr=1e-3)
    with monitor.watch(small_net, optimizer, steps=steps):
        pass
    power = monitor.power()["memory"]
    assert power.within == within and power.n_groups == 3
    assert f"memory: {power}" in capsys.readouterr().err
    run = load_run(tmp_path)
    assert str(power) in power_text(run, run.behaviors[0])


def test_probe_sets_know_their_categories(tmp_path: Path) -> None:
    tokenizer = make_bytes_tokenizer()
    refusal = probe_sets.load("refusal", tokenizer, n=30)
    assert refusal.categories is not None and len(refusal.categories) == 30
    assert len(set(refusal.categories)) == 15
    half, rest = refusal.split(12)
    assert half.categories is not None and rest.categories is not None
    assert sorted(half.categories + rest.categories) == sorted(refusal.categories)
    part = refusal.subset([3, 4])
    assert part.categories == refusal.categories[3:5]
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    assert probe_sets.load(str(own), tokenizer).categories is None
