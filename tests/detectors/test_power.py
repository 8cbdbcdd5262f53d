"""The power of a probe set is that of counting its probes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from riprap import Behavior, Monitor
from riprap.detectors import Power, score


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
    assert str(Power.of(margins(24, 24), 0.9)).startswith("24 probes, 2 may fail; a true score")
    assert "the first that fails breaks it" in str(Power.of(margins(9, 10), 0.9))
    assert str(Power.of(margins(5, 10), 0.9)) == "10 probes, under the floor"


def test_a_run_says_it_at_the_start(
    small_net, memory: Behavior, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monitor = Monitor([memory])
    with monitor.watch(small_net, torch.optim.SGD(small_net.parameters(), lr=1e-3)):
        pass
    assert f"memory: {monitor.power()['memory']}" in capsys.readouterr().err
