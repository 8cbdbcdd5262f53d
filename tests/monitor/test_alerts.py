"""Alerts: raised when a detector's level rises, and not again while it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from dial import below, reading, turn
from riprap import AlertPolicy, Behavior, Monitor, signals
from riprap.detectors import BettingTest, Detector
from riprap.types import Alert, Forecast, Level, ReadingStatus


def raised(monitor: Monitor) -> list[tuple[int, str]]:
    return [(alert.step, str(alert.level)) for alert in monitor.alerts]


def watching(*detectors: Detector, behaviors: Sequence[Behavior] = ()) -> Monitor:
    policy = AlertPolicy(name="test", detectors=detectors)
    return Monitor(list(behaviors) or [reading()], policy=policy, probe_every=1)


def test_an_alert_is_raised_once_while_it_stands() -> None:
    monitor = watching(below(1.0, Level.WARNING))
    turn(monitor, [2, 1.5, 0.9, 0.8, 0.7, 0.6])
    assert raised(monitor) == [(2, "warning")]


def test_it_is_raised_again_after_two_evaluations_without_it() -> None:
    monitor = watching(below(1.0, Level.WARNING))
    turn(monitor, [2, 0.5, 1.5, 0.5, 1.5, 1.5, 0.5, 0.5])
    assert raised(monitor) == [(1, "warning"), (6, "warning")]


def test_detectors_of_one_kind_do_not_silence_or_repeat_each_other() -> None:
    monitor = watching(below(1.0, Level.WATCH), below(-5.0, Level.WARNING), below(0.5, Level.WATCH))
    turn(monitor, [2, 0.9, 0.9, 0.4, 0.4, 0.9, 0.9, 0.4])
    assert raised(monitor) == [(1, "watch"), (3, "watch"), (7, "watch")]


class Steps(Detector):
    """An alert whose level follows the margin, and a forecast beside it."""

    kind: str = "steps"

    def check(self, history) -> Alert | None:
        order = [(0.25, Level.CRITICAL), (0.5, Level.WARNING), (0.75, Level.WATCH)]
        level = next((level for bound, level in order if history.threshold_margin < bound), None)
        if level is None:
            return None
        return Alert(
            history.step, history.behavior, level, "steps", "so far", (), self.forecast(history)
        )

    def forecast(self, history) -> Forecast | None:
        return Forecast(
            history.threshold_margin * 100, history.threshold_margin * 50, float("inf"), 50
        )


def stepping() -> Monitor:
    monitor = watching(below(-9.0, Level.WATCH))
    monitor._run.tracker.policy = monitor.policy.model_copy(update={"detectors": (Steps(),)})
    return monitor


def test_each_rise_is_an_alert_and_a_fall_is_none() -> None:
    monitor = stepping()
    turn(monitor, [1, 0.7, 0.4, 0.4, 0.1, 0.4, 0.7, 0.1])
    assert raised(monitor) == [(1, "watch"), (2, "warning"), (4, "critical"), (7, "critical")]
    assert monitor.alerts[0].forecast == Forecast(
        pytest.approx(70), pytest.approx(35), float("inf"), 50
    )


def test_forecasts_are_readings_and_what_lies_beyond_the_horizon_has_no_value() -> None:
    monitor = stepping()
    turn(monitor, [1, 0.4])
    history = monitor.history()
    last = history[history.step == 1].set_index("signal")
    assert last.value["forecast_median"] == pytest.approx(40)
    assert last.value["forecast_low"] == pytest.approx(20)
    assert last.state["forecast_high"] == ReadingStatus.INSUFFICIENT
    assert last.detail["forecast_high"] == "no break is expected within the horizon"
    assert history[(history.step == 0) & (history.signal == "forecast_median")].value.isna().all()
    assert monitor.forecasts["dial"] == Forecast(
        pytest.approx(40), pytest.approx(20), float("inf"), 50
    )


def test_each_behavior_has_alerts_of_its_own() -> None:
    both = [reading("low", -1.0), reading("high")]
    monitor = watching(below(0.5, Level.WARNING), behaviors=both)
    turn(monitor, [3, 1.2, 0.2, 0.2])
    assert [(a.step, a.behavior) for a in monitor.alerts] == [(1, "low"), (2, "high")]


def test_what_was_broken_before_training_is_said_once_and_never_alerted() -> None:
    both = [reading("lost", -5.0), reading("kept")]
    monitor = watching(below(1.0, Level.CRITICAL), behaviors=both)
    with pytest.warns(UserWarning, match=r"'lost' starts below its floor: 0\.00 < 0\.90.*no alert"):
        turn(monitor, [3, 2, 0.5])
    assert [a.behavior for a in monitor.alerts] == ["kept"]
    assert monitor.broken() == {"lost": None, "kept": None}
    assert monitor.below_floor() == {"lost": 0.0}


@pytest.mark.parametrize(("read", "latest"), [(signals.per_step, 91), (signals.default, 94)])
def test_interference_calls_for_an_evaluation_before_the_plan_does(
    read: Callable[[], list[signals.Signal]], latest: int
) -> None:
    """Long calm steps, gaps grown long; one large step is evaluated when it has been read."""
    policy = AlertPolicy(name="test", detectors=[below(0.0, Level.CRITICAL)])
    monitor = Monitor([reading()], policy=policy, probe_every=40, signals=read())
    turn(monitor, [10.0] * 91 + [4.0] + [4.0] * 5)
    evaluated = monitor.behavior_histories["dial"].steps
    planned = [step for step in evaluated if step < 91]
    soon = [step for step in evaluated if 91 <= step <= latest]
    assert len(soon) == 1
    assert planned[-1] + planned[-1] // 4 > latest  # it was not its turn
    interference = monitor.behavior_histories["dial"].interference
    assert interference[soon[0]] == pytest.approx(-6.0)


def test_small_steps_add_up_to_an_evaluation() -> None:
    policy = AlertPolicy(name="test", detectors=[below(0.0, Level.CRITICAL)])
    monitor = Monitor([reading()], policy=policy, probe_every=1000)
    values = [10.0] * 81 + [10.0 - 0.6 * i for i in range(1, 10)]
    turn(monitor, values)
    evaluated = [step for step in monitor.behavior_histories["dial"].steps if step > 80]
    assert evaluated[0] == 89  # 10 − 9 × 0.6: more than half of the margin is gone


def test_too_few_probes_to_establish_anything_are_named_before_training() -> None:
    few = Behavior("few", 5, lambda model, count: model().expand(count))
    with pytest.warns(UserWarning, match="'few' has 5 probes"):
        turn(watching(BettingTest(), behaviors=[few]), [2, 2])


def test_enough_probes_are_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    many = Behavior("many", 48, lambda model, count: model().expand(count))
    turn(watching(BettingTest(), behaviors=[many]), [2, 2])
    assert not [w for w in recwarn if "probes" in str(w.message)]
