"""The planned learning rates are those that the run then has, and reading them changes nothing."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from transformers import get_scheduler

from loops import task, train
from riprap import Behavior, Monitor
from riprap.detectors import (
    ProbeTrend,
    RateSchedule,
    null_histories,
    plans_from_record,
    reevaluate,
)
from riprap.errors import ConfigError
from riprap.monitor._plan_check import PlanCheck
from riprap.record import Reader
from riprap.types import Alert, Level

STEPS = 30
KINDS: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=4),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)],
        [5],
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "transformers": lambda o: get_scheduler("cosine", o, 5, STEPS),
}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    first, *others = model.parameters()
    return torch.optim.SGD([{"params": [first]}, {"params": others, "lr": 3e-3}], 1e-3, 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_run(kind: str, small_net: nn.Module, memory: Behavior) -> None:
    optimizer = optimizer_of(small_net)
    scheduler = KINDS[kind](optimizer)
    before = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    monitor = Monitor([memory])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monitor.begin(small_net, optimizer, steps=STEPS, scheduler=scheduler)
    assert repr((optimizer.state_dict(), scheduler.state_dict())) == repr(before)
    plan = monitor.behavior_histories["memory"].schedule
    assert plan is not None and plan.sums is not None
    rates = []
    for batch in task(STEPS):
        rates.append(max(group["lr"] for group in optimizer.param_groups))
        train(small_net, optimizer, [batch])
        scheduler.step()
    monitor.end()
    np.testing.assert_allclose(np.diff(plan.sums), rates)
    np.testing.assert_allclose(monitor.behavior_histories["memory"].rate_sums[-1], plan.sums[-1])


def test_what_cannot_be_known_is_not_made_up(small_net: nn.Module, memory: Behavior) -> None:
    optimizer = optimizer_of(small_net)
    for scheduler in (None, lr_scheduler.ReduceLROnPlateau(optimizer)):
        monitor = Monitor([memory])
        with monitor.watch(small_net, optimizer, steps=7, scheduler=scheduler):
            plan = monitor.behavior_histories["memory"].schedule
        assert plan == RateSchedule(0, 7)


def test_a_function_tells_the_rates_of_the_steps_from_now_on(
    small_net: nn.Module, memory: Behavior
) -> None:
    """Also at a second watch, where steps of the run are behind."""
    optimizer, monitor = optimizer_of(small_net), Monitor([memory])
    for _ in range(2):
        with monitor.watch(small_net, optimizer, steps=3, scheduler=lambda k: 3e-3 / (1 + k)):
            train(small_net, optimizer, task(3))
            plan = monitor.behavior_histories["memory"].schedule
            assert plan is not None and plan.sums is not None
            np.testing.assert_allclose(np.diff(plan.sums), [3e-3, 1.5e-3, 1e-3])
        assert plan.first == monitor.step - 3


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (lambda step: 1 - step / 4, r"scheduler\(0\) is 1, and .* rate 0\.003 now.*not a factor"),
        (lambda step: 3e-3 * (4 - step) / 4, None),
        (lambda step: 3e-3 * (3 - step) / 4, r"scheduler\(0\) is 0\.00225.*from now on"),
        (lambda step: math.nan, r"scheduler\(0\) is nan"),
        (lambda step: [3e-3][step - 5], r"scheduler\(0\) failed \(list index out of range\)"),
    ],
)
def test_factors_and_steps_counted_from_elsewhere_are_refused(
    scheduler: Any, words: str | None, small_net: nn.Module, memory: Behavior
) -> None:
    optimizer, monitor = optimizer_of(small_net), Monitor([memory])
    if words is not None:
        with pytest.raises(ConfigError, match=words):
            monitor.begin(small_net, optimizer, steps=3, scheduler=scheduler)
        assert not monitor.watching and not Reader(monitor.record).readings()
        scheduler = None
    monitor.begin(small_net, optimizer, steps=3, scheduler=scheduler)
    monitor.end()


def test_the_scheduler_of_another_optimizer_is_refused(
    small_net: nn.Module, memory: Behavior
) -> None:
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.5)
    scheduler = lr_scheduler.CosineAnnealingLR(other, 9)
    with pytest.raises(ConfigError, match=r"of this CosineAnnealingLR has the rate 0\.5.*watched"):
        Monitor([memory]).begin(small_net, optimizer_of(small_net), steps=3, scheduler=scheduler)


class Stubborn(lr_scheduler.LambdaLR):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("not to be copied")


def test_a_scheduler_that_cannot_be_copied_ends_no_run(
    small_net: nn.Module, memory: Behavior
) -> None:
    optimizer = optimizer_of(small_net)
    monitor = Monitor([memory])
    with (
        pytest.warns(UserWarning, match="not to be copied"),
        monitor.watch(small_net, optimizer, steps=3, scheduler=Stubborn(optimizer, lambda _: 1)),
    ):
        train(small_net, optimizer, task(3))
    assert monitor.behavior_histories["memory"].schedule == RateSchedule(0, 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": -1}, "number of optimizer steps"),
        ({"steps": 2.5}, "number of optimizer steps"),
        ({"scheduler": lambda _: 1e-3}, "give steps as well"),
        ({"steps": 3, "scheduler": 1e-3}, "a function that returns"),
    ],
)
def test_a_plan_that_is_none_is_refused(
    given: Any, words: str, small_net: nn.Module, memory: Behavior
) -> None:
    with pytest.raises(ConfigError, match=words):
        Monitor([memory]).begin(small_net, optimizer_of(small_net), **given)


def test_sums_of_the_rates_to_come() -> None:
    rates = np.array([0.0, 1.0, 2.0, 0.0, 4.0])
    plan = RateSchedule.of_rates(10, rates)
    for step in range(10, 16):
        for count in range(6):
            assert plan.rate_sum(step, count, 9.0) == rates[step - 10 :][:count].sum()
    assert RateSchedule(10, 5).rate_sum(12, 9, 0.5) == 1.5


@pytest.mark.parametrize("n", [1, 30, 2000, 5003])
def test_a_plan_is_restored_from_its_facts(n: int) -> None:
    rates = 1e-3 * (1 + np.cos(np.linspace(0, np.pi, n)))
    plan = RateSchedule.of_rates(7, rates)
    again = RateSchedule.from_facts(7, json.loads(json.dumps(plan.facts())))
    assert (again.first, again.n_steps) == (7, n)
    assert plan.sums is not None and again.sums is not None
    np.testing.assert_allclose(again.sums, plan.sums, rtol=1e-4 if n > 2000 else 1e-12)
    unknown = RateSchedule(7, n)
    assert RateSchedule.from_facts(7, json.loads(json.dumps(unknown.facts()))) == unknown


class Falling(nn.Module):
    """A model whose 20 margins fall by the learning rate in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def behavior(self) -> Behavior:
        start = torch.linspace(1, 3, 20)
        return Behavior("b", range(20), lambda model, _: start - model.weight)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.weight.grad = -torch.ones(1)
        optimizer.step()


def fall(monitor: Monitor, model: Falling, steps: int = 60) -> Any:
    """Train along a line to 0 whose rates sum to three quarters of the third lowest margin."""
    optimizer = torch.optim.SGD(model.parameters(), lr=2 * 0.9 / 60)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 60)
    with monitor.watch(model, optimizer, steps=60, scheduler=scheduler):
        for _ in range(steps):
            model.step(optimizer)
            scheduler.step()
        return monitor.behavior_histories["b"].schedule, monitor.state_dict()


def test_a_record_is_judged_with_the_plan_of_its_run(tmp_path: Path) -> None:
    """At the present pace the behavior would break, and under the plan it does not."""
    model = Falling()
    monitor = Monitor([model.behavior()], run_dir=tmp_path, probe_every=5, budget=None)
    plan, _ = fall(monitor, model)
    (history,) = null_histories([tmp_path])
    assert history.schedule is not None and history.schedule.n_steps == plan.n_steps == 60
    np.testing.assert_allclose(history.schedule.sums, plan.sums)
    trend = ProbeTrend()
    live = {alert.level for alert in monitor.alerts}
    assert {alert.level for alert in reevaluate(trend, history)} == live
    history.plans, history.schedule = {}, None
    blind = {alert.level for alert in reevaluate(trend, history)}
    assert Level.WATCH in blind and not live


def test_a_resumed_run_has_the_plan_of_its_state() -> None:
    model = Falling()
    plan, state = fall(Monitor([model.behavior()], budget=None), model, steps=20)
    again = Monitor([model.behavior()], budget=None)
    again.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with again.watch(model, optimizer):
        restored = again.behavior_histories["b"].schedule
        assert restored is not None and restored.first == 0 and restored.n_steps == 60
        np.testing.assert_allclose(restored.sums, plan.sums)


def test_a_later_watch_without_a_plan_has_none_in_its_record_either(tmp_path: Path) -> None:
    model = Falling()
    monitor = Monitor([model.behavior()], run_dir=tmp_path, budget=None)
    fall(monitor, model, steps=20)
    with monitor.watch(model, torch.optim.SGD(model.parameters(), lr=1e-3)):
        assert monitor.behavior_histories["b"].schedule is None
    with Reader(tmp_path) as reader:
        plans = plans_from_record(reader.events())
    assert set(plans) == {0, 20} and plans[20] is None


def test_a_plan_of_steps_that_were_taken_again_does_not_hold(tmp_path: Path) -> None:
    model = Falling()
    monitor = Monitor([model.behavior()], run_dir=tmp_path, budget=None)
    _, state = fall(monitor, model, steps=20)
    fall(monitor, model, steps=10)
    with monitor.watch(model, torch.optim.SGD(model.parameters(), lr=1e-3)):
        pass
    with Reader(tmp_path) as reader:
        assert set(plans_from_record(reader.events())) == {0, 20, 30}
    again = Monitor([model.behavior()], run_dir=tmp_path, budget=None, resume=True)
    again.load_state_dict(state)
    with again.watch(model, torch.optim.SGD(model.parameters(), lr=1e-3)):
        pass
    with Reader(tmp_path) as reader:
        assert set(plans_from_record(reader.events())) == {0, 20}


def test_a_plan_knows_its_rest() -> None:
    whole = RateSchedule.of_rates(0, np.linspace(1e-3, 1e-5, 30))
    rest = RateSchedule.of_rates(12, np.linspace(1e-3, 1e-5, 30)[12:])
    assert whole.ends_as(rest)
    assert not rest.ends_as(whole)
    assert not whole.ends_as(RateSchedule.of_rates(12, np.full(18, 1e-3)))
    assert not whole.ends_as(RateSchedule(12, 18))
    assert RateSchedule(0, 30).ends_as(RateSchedule(12, 18))


RATE = 1.6 / 60  # of `Falling`: its third lowest margin ends in the 46th step


def fall_at(
    rates: Callable[[int], float], plan: Any, tmp_path: Path | None = None, steps: int = 60
) -> Monitor:
    """Train at some rates under a plan, which may be another one."""
    model = Falling()
    monitor = Monitor([model.behavior()], run_dir=tmp_path, probe_every=5, budget=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=rates(0))
    with monitor.watch(model, optimizer, steps=steps, scheduler=plan):
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rates(step)
            model.step(optimizer)
    return monitor


def serious(alerts: list[Alert]) -> list[tuple[int, str]]:
    return [(own.step, str(own.level)) for own in alerts if own.level is not Level.WATCH]


def constant(step: int) -> float:
    return RATE


@pytest.mark.parametrize(
    "plan", [lambda k: RATE * 0.5**k, lambda k: RATE * (1 - k / 60), lambda k: RATE * (k == 0)]
)
def test_a_plan_that_the_run_contradicts_is_dropped_in_words(plan: Any, tmp_path: Path) -> None:
    """And the alerts come as early as without a plan, live and from the record."""
    with pytest.warns(UserWarning, match=r"learning rate of step \d+ is 0\.0267, and the plan"):
        monitor = fall_at(constant, plan, tmp_path)
    assert "forecasts no longer follow the plan" in monitor.summary()
    alerts = serious(monitor.alerts)
    assert alerts == serious(fall_at(constant, None).alerts)
    assert [level for _, level in alerts] == ["warning", "critical"]
    assert alerts[-1][0] < 46 == monitor.broken()["b"]
    with Reader(tmp_path) as reader:
        (event,) = [e for e in reader.events() if "forecasts no longer" in str(e["facts"])]
        plans = plans_from_record(reader.events())
    assert set(plans) == {0, event["step"]} and plans[event["step"]].sums is None  # type: ignore[union-attr]
    assert plans[event["step"]].n_steps == 60 - event["step"]  # type: ignore[union-attr]
    (history,) = null_histories([tmp_path])
    assert set(alerts) <= set(serious(reevaluate(ProbeTrend(), history)))


@pytest.mark.parametrize("planned", [0, 30])
def test_a_run_that_goes_on_after_its_plan_is_forecast_on(planned: int, tmp_path: Path) -> None:
    model = Falling()
    monitor = Monitor([model.behavior()], run_dir=tmp_path, probe_every=5, budget=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    words = f"training goes on after the {planned} steps that were planned"
    with (
        pytest.warns(UserWarning, match=words) as told,
        monitor.watch(model, optimizer, steps=planned),
    ):
        for _ in range(60):
            model.step(optimizer)
    assert sum(words in str(warning.message) for warning in told) == 1
    (step, level) = serious(monitor.alerts)[-1]
    assert level == "critical" and step < 46 == monitor.broken()["b"]
    with Reader(tmp_path) as reader:
        plans = plans_from_record(reader.events())
    assert list(plans.values()) == [RateSchedule(0, planned), None]


def warm_cosine(step: int) -> float:
    return RATE * min((step + 1) / 10, (1 + math.cos(math.pi * step / 60)) / 2)


@pytest.mark.parametrize("shift", [-3, 0, 3])
@pytest.mark.parametrize("rates", [warm_cosine, lambda k: RATE * (0.1 if k >= 30 else 1.0)])
def test_a_plan_that_is_a_few_steps_off_stays(
    rates: Callable[[int], float], shift: int, recwarn: pytest.WarningsRecorder
) -> None:
    """As where a scaler skips the first steps, and the scheduler goes on."""
    model = Falling()
    monitor = Monitor([model.behavior()], budget=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=rates(0))
    with monitor.watch(model, optimizer, steps=60, scheduler=rates):
        for step in range(60):
            optimizer.param_groups[0]["lr"] = rates(max(step + shift, 0))
            model.step(optimizer)
        plan = monitor.behavior_histories["b"].schedule
        assert plan is not None and plan.sums is not None
    assert not [w for w in recwarn if "no longer follow" in str(w.message)]


def test_with_several_optimizers_the_plan_of_one_counts_up_to_a_factor(
    small_net: nn.Module, memory: Behavior, recwarn: pytest.WarningsRecorder
) -> None:
    first, *others = small_net.parameters()
    pair = [torch.optim.SGD([first], lr=1e-2), torch.optim.SGD(others, lr=1e-4)]
    schedules = [lr_scheduler.LambdaLR(one, lambda step: 1 - step / 40) for one in pair]
    monitor = Monitor([memory])
    with monitor.watch(small_net, pair, steps=30, scheduler=schedules[1]):
        for batch in task(30):
            train(small_net, pair[0], [batch])
            pair[1].step()
            for scheduler in schedules:
                scheduler.step()
        plan = monitor.behavior_histories["memory"].schedule
        assert plan is not None and plan.sums is not None
    assert not [w for w in recwarn if "no longer follow" in str(w.message)]


def test_the_rate_that_the_plan_says_is_that_of_the_step() -> None:
    rates = np.minimum(np.arange(1, 20_001) / 200, 1)
    plan = RateSchedule.of_rates(0, rates.tolist())
    for given in (plan, RateSchedule.from_facts(0, plan.facts())):
        check = PlanCheck(given)
        for step in range(100, 105):
            check.note(step, 5.0)
        said = re.search(r"step 104 is 5.*the plan says ([\d.]+):", check.contradiction())
        assert said is not None
        assert float(said[1]) == pytest.approx(rates[103], abs=0.03)  # ten steps make 0.05


def test_a_long_plan_that_was_restored_is_not_contradicted_where_it_jumps() -> None:
    rates = np.where(np.arange(20_000) < 10_003, 1e-3, 1e-5)
    plan = RateSchedule.of_rates(0, rates.tolist())
    check = PlanCheck(RateSchedule.from_facts(0, plan.facts()))
    for step, rate in enumerate(rates, 1):
        check.note(step, rate)
    assert check.contradiction() == ""
