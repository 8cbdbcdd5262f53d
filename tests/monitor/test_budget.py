"""A monitor with a budget: what it evaluates, what that costs, and what it still finds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from riprap import Behavior, Monitor, evaluation, signals
from riprap.errors import ConfigError
from riprap.monitor._budget import ADVANCE_SECONDS, ADVANCES, RATES
from riprap.monitor._cost import Cost
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.record import Reader
from tiny import make_llama

STEPS, BUDGET = 120, 0.03


class TokenClock:
    """Counts tokens in passes, so that runs do not depend on the machine; gradients cost twice."""

    def __init__(self, model: nn.Module, scale: float = 1.0) -> None:
        self.now, self.scale = 0.0, scale
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        factor = self.scale if model.training else 1.0
        self.now += factor * ids.numel() * (3 if torch.is_grad_enabled() else 1)

    def __call__(self) -> float:
        return self.now


def passed_probes(model: nn.Module, name: str, count: int, seed: int) -> Behavior:
    """A behavior with what the model says now as its targets."""
    ids = torch.randint(6, 40, (count, 5), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        targets = model(input_ids=ids).logits[:, -1].argmax(-1)
    return Behavior.next_token(name, ids, targets)


def run(
    lr: float,
    budget: float | None = BUDGET,
    scale: float = 1.0,
    steps: int = STEPS,
    **options: Any,
) -> tuple[Monitor, nn.Module, dict[str, list[np.ndarray]]]:
    """Train on random tokens; return monitor, model, and the margins of every step."""
    model = make_llama().train()
    behaviors = [passed_probes(model, name, n, n) for name, n in (("one", 32), ("two", 20))]
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    monitor = Monitor(behaviors, budget=budget, **options)
    monitor.use_clock(TokenClock(model, scale))
    truth: dict[str, list[np.ndarray]] = {b.name: [] for b in behaviors}

    def look() -> None:
        clock = monitor._run.meter.clock
        now = clock.now
        for behavior in behaviors:
            truth[behavior.name].append(evaluation.evaluate(behavior, model).margins)
        clock.now = now

    look()
    with monitor.watch(model, optimizer):
        for _ in range(steps):
            ids = torch.randint(6, 40, (8, 10))
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            look()
    return monitor, model, truth


def test_it_keeps_to_the_budget_while_calm() -> None:
    monitor, _, _ = run(lr=1e-6, steps=1000)
    meter, budget = monitor._run.meter, monitor._run.schedule.budget
    assert budget is not None
    spent = meter.own_seconds - meter.seconds["start"]
    assert spent <= ADVANCES["calm"] * budget.forward_price() + BUDGET * meter.training_seconds
    assert spent >= 0.2 * BUDGET * meter.training_seconds  # it does use it
    assert sum(budget.spent.values()) == pytest.approx(spent)
    assert budget.spent["urgent"] == 0


def test_a_larger_budget_evaluates_more() -> None:
    few, many = (run(lr=1e-6, budget=budget, steps=300)[0] for budget in (0.01, 0.2))
    gaps = [np.diff(sorted(set(m.history().step)))[-5:].max() for m in (few, many)]
    assert few._run.meter.own_seconds < many._run.meter.own_seconds
    assert few._run.meter.counts["refreshes"] < many._run.meter.counts["refreshes"]
    assert gaps[0] >= gaps[1]


def test_long_steps_pay_for_evaluations_at_the_steps_without_a_budget() -> None:
    """Where training is dear, the gaps are those of the schedule."""
    monitor, _, _ = run(lr=1e-6, scale=1000.0)
    steps = monitor.behavior_histories["one"].steps
    assert np.diff(steps).max() <= 20


def test_histories_are_of_the_steps_they_name() -> None:
    monitor, _, truth = run(lr=0.05)
    assert any(broke is not None for broke in monitor.broken().values())
    for name, history in monitor.behavior_histories.items():
        for step, margins in zip(history.steps, history.margins, strict=True):
            np.testing.assert_allclose(margins, truth[name][step], rtol=1e-3, atol=1e-3)
    for alert in monitor.alerts:
        assert alert.step in monitor.behavior_histories[alert.behavior].steps


def test_a_break_is_found_at_the_next_evaluation() -> None:
    monitor, _, truth = run(lr=0.05)
    for name, broke in monitor.broken().items():
        history = monitor.behavior_histories[name]
        first = next(s for s, m in enumerate(truth[name]) if (m > 0).mean() < history.floor)
        assert broke == next(step for step in history.steps if step >= first)


def test_urgency_is_bounded() -> None:
    monitor, _, _ = run(lr=3e-4, steps=300)
    budget = monitor._run.schedule.budget
    assert budget is not None
    assert budget.spent["urgent"] > 0
    earned = RATES["urgent"] * BUDGET * budget.meter.training_seconds
    limit = (ADVANCES["urgent"] + 2) * budget.forward_price() + earned
    assert budget.spent["urgent"] <= limit


def test_the_record_has_the_cost_and_the_summary_says_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor, _, _ = run(lr=1e-6, run_dir=tmp_path / "run")
    with Reader(tmp_path / "run") as reader:
        (event,) = [e for e in reader.events() if e["kind"] == "cost"]
    meter = monitor._run.meter
    assert event["facts"]["share"] == pytest.approx(meter.own_seconds / meter.training_seconds)
    assert event["facts"]["budget"] == BUDGET
    monkeypatch.setattr("riprap.monitor._summary.FEW_SECONDS", float("inf"))
    assert "%" not in monitor.summary().splitlines()[-1]  # of few seconds, a share says little
    monkeypatch.setattr("riprap.monitor._summary.FEW_SECONDS", 0)
    last = monitor.summary().splitlines()[-1]
    assert last.startswith("The monitor took ")
    assert "its budget is 3 %" in last


def test_training_is_the_same_with_and_without() -> None:
    plain = make_llama().train()
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.02)
    for _ in range(STEPS):
        ids = torch.randint(6, 40, (8, 10))
        optimizer.zero_grad()
        plain(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    _, watched, _ = run(lr=0.02)
    pairs = zip(plain.parameters(), watched.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@given(
    step=st.floats(0.01, 10.0),
    forward=st.floats(0.01, 10.0),
    refresh=st.floats(1.5, 4.0),
    steps=st.integers(1, 2000),
    budget=st.floats(0.005, 0.2),
    every=st.integers(1, 50),
)
def test_a_planned_run_never_costs_more_than_it_may(
    step: float, forward: float, refresh: float, steps: int, budget: float, every: int
) -> None:
    price = refresh * forward
    cost = Cost(step, 0.0, forward, price, price, 0)
    planned = cost.plan(every, steps, budget)
    limit = price + max(ADVANCES["calm"] * forward, ADVANCE_SECONDS)
    limit += (RATES["calm"] + RATES["refresh"]) * budget * steps * step
    # At the latest every `max_stretch` · `every` steps the probes are evaluated anyway.
    limit += forward * (steps / (ProbeSchedule.max_stretch * every) + 1)
    assert planned.seconds <= limit + 1e-9


def test_the_plan_is_what_a_run_does() -> None:
    monitor, _, _ = run(lr=1e-6, steps=400)
    meter, budget = monitor._run.meter, monitor._run.schedule.budget
    assert budget is not None
    assert budget.refresh is None or budget.refresh > 0
    cost = Cost(
        step_seconds=meter.step_seconds,
        hook_seconds=0.0,
        forward_seconds=budget.forward_price(),
        refresh_seconds=budget.refresh_price(),
        start_seconds=meter.seconds["start"],
        memory_bytes=0,
    )
    planned = cost.plan(20, 400, BUDGET)
    assert planned.seconds == pytest.approx(meter.own_seconds, rel=0.1)


def test_readings_over_several_steps_are_sums_of_single_ones() -> None:
    few, _, _ = run(lr=1e-3, budget=None, steps=60)
    every = [signals.Interference(every_step=True)]
    single, _, _ = run(lr=1e-3, budget=None, steps=60, signals=every)
    for name in ("one", "two"):
        spans = few.behavior_histories[name].interference
        steps = single.behavior_histories[name].interference
        assert len(spans) < len(steps) == 60
        before = 0
        for at, value in spans.items():
            total = sum(steps[step] for step in range(before + 1, at + 1))
            assert value == pytest.approx(total, rel=1e-3, abs=1e-6)
            before = at
        assert before == 60


@pytest.mark.parametrize("budget", [0, -0.1, 1.5, "3 %", True])
def test_what_is_no_share_is_refused(budget: Any) -> None:
    behavior = passed_probes(make_llama(), "one", 4, 0)
    right = "give a share of the training time|give a number or None"
    with pytest.raises(ConfigError, match=right):
        Monitor([behavior], budget=budget)


def test_a_schedule_with_a_budget_survives_a_resume() -> None:
    model = make_llama().train()
    behavior = passed_probes(model, "one", 32, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def steps(count: int) -> None:
        for _ in range(count):
            ids = torch.randint(6, 40, (8, 10))
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

    first = Monitor([behavior], budget=BUDGET)
    clock = TokenClock(model)
    first.use_clock(clock)
    with first.watch(model, optimizer):
        steps(37)
        state = first.state_dict()
        planned = dataclasses.asdict(first._run.schedule)
        due = first._run.schedule.next_step
    again = Monitor([behavior], budget=BUDGET)
    again.use_clock(TokenClock(model))
    again.load_state_dict(state)
    resumed = dataclasses.asdict(again._run.schedule)
    assert {k: v for k, v in resumed.items() if k != "budget"} == {
        k: v for k, v in planned.items() if k != "budget"
    }
    with again.watch(model, optimizer):
        steps(due - 37)
        history = again.history()
    evaluated = set(history[history.signal == "score"].step)
    assert evaluated == {due}
