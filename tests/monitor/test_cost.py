"""A monitor's cost: planned as a monitor does, and put together right from what is measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loops import task, train
from riprap import AlertPolicy, Behavior, Monitor, signals
from riprap.monitor._cost import Cost, measure_cost


@pytest.mark.parametrize("every", [1, 5, 20, 100])
@pytest.mark.parametrize("steps", [1, 8, 60, 150])
def test_evaluations_are_those_of_a_monitor_on_a_calm_run(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy, every: int, steps: int
) -> None:
    monitor = Monitor([memory], policy=policy, probe_every=every, signals=signals.per_step())
    still = torch.optim.SGD(learned.parameters(), lr=0.0)
    with monitor.watch(learned, still):
        train(learned, still, task(1) * steps)
    history = monitor.history()
    fresh = set(history[history.signal == "norm_margin_gradient"].step) - {0}
    evaluated = set(monitor.behavior_histories["memory"].steps) - {0}
    planned = Cost(1.0, 0.0, 0.1, 0.3, 0.5, 0).plan(every, steps)
    assert (planned.evaluations, planned.refreshes) == (len(evaluated), len(fresh))


def test_the_sum_is_the_one_made_by_hand() -> None:
    cost = Cost(
        step_seconds=2.0,
        hook_seconds=0.1,
        forward_seconds=1.0,
        refresh_seconds=3.0,
        start_seconds=5.0,
        memory_bytes=0,
    )
    # every=1, 4 steps: 4 evaluations; the second and the fourth refresh gradients
    planned = cost.plan(1, 4)
    assert (planned.evaluations, planned.refreshes) == (4, 2)
    assert cost.run_ratio(1, 4) == pytest.approx(1 + (5 + 0.4 + 2 * 1 + 2 * 3) / 8)
    assert cost.calm_ratio(20) == pytest.approx(1 + (0.1 + (7 * 1 + 3) / (8 * 20)) / 2)


def test_steps_without_hooks_are_no_change_from_outside(
    learned: nn.Module, memory: Behavior, policy: AlertPolicy
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-3)
    monitor = Monitor([memory], policy=policy)
    measure_cost(monitor, learned, optimizer, lambda: train(learned, optimizer, task(1)), rounds=3)
    history = monitor.history()
    assert set(history[history.signal == "interference"].state) == {"MEASURED"}
    assert [alert.detector for alert in monitor.alerts] == []


def test_parts_are_measured_apart(memory: Behavior, policy: AlertPolicy) -> None:
    """A slow margin shows in the evaluations and not in the steps, and gradients cost more."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 4))
    inputs, labels = memory.probes
    many = (inputs.repeat(400, 1), labels.repeat(400))
    heavy = Behavior("heavy", many, memory.margins, floor=0.01)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.0)
    monitor = Monitor([heavy], policy=policy)
    steps = [0]

    def step() -> None:
        steps[0] += 1
        train(wide, optimizer, task(1))

    found = measure_cost(monitor, wide, optimizer, step, rounds=5)
    assert steps[0] == 21
    assert found.forward_seconds > found.step_seconds
    assert found.refresh_seconds > found.forward_seconds
    parameters = sum(p.numel() for p in wide.parameters())
    assert found.memory_bytes == 2 * 4 * parameters  # θ before the step, and one h_b
    assert not monitor.watching
