"""Calibration on null runs: what it raises, what it never lowers, and what it refuses."""

import numpy as np
import pytest
from typer.testing import CliRunner

from riprap.cli._app import app
from riprap.detectors import AlertPolicy, BehaviorHistory, BettingTest, ProbeTrend
from riprap.detectors._calibrate import calibrate, false_alarms, null_histories
from riprap.errors import PolicyError
from riprap.record import Writer

CALM = AlertPolicy.parse(
    {"name": "mine", "detectors": [{"kind": "betting"}, {"kind": "cusum"}, {"kind": "forecast"}]},
    "here",
)


def null_run(folder, wander, evaluations=20):
    """A recorded run whose mean margin of 10 falls by `wander` and comes back."""
    writer = Writer(folder)
    writer.write_meta(behaviors=[{"name": "b", "floor": 0.9, "contrast": None}])
    around = np.linspace(-0.5, 0.5, 48)
    for step in range(evaluations):
        writer.add_margins(step, "b", 10 - wander * np.sin(np.pi * step / evaluations) + around)
    writer.close()
    return folder


def kinds(policy):
    return {detector.kind: detector for detector in policy.detectors}


def test_a_wavering_model_is_tolerated_after_calibration(tmp_path):
    histories = null_histories([null_run(tmp_path / "null", wander=2.0)])
    assert any("betting" in text for text in false_alarms(CALM, histories))
    after = calibrate(CALM, histories, "null run")
    assert not any("betting" in text for text in false_alarms(after, histories))
    assert kinds(after)["betting"].tolerated == pytest.approx(0.30, abs=0.011)


def test_a_calm_run_lowers_nothing(tmp_path):
    histories = null_histories([null_run(tmp_path / "null", wander=0.001)])
    assert (
        kinds(calibrate(CALM, histories, "null run"))["betting"].tolerated
        == BettingTest().tolerated
    )


def test_scales_are_those_of_the_run_and_behavior(tmp_path):
    histories = null_histories([null_run(tmp_path / "null", wander=2.0)])
    means = [margins.mean() for margins in histories[0].margins[1:]]
    scale = kinds(calibrate(CALM, histories, "null run"))["cusum"].scale
    assert scale == {"b": pytest.approx(np.std(means, ddof=1))}


def test_the_worst_of_several_runs_counts(tmp_path):
    runs = [null_run(tmp_path / str(w), wander=w) for w in (0.1, 3.0, 0.2)]
    alone = kinds(calibrate(CALM, null_histories(runs[1:2]), "x"))
    both = kinds(calibrate(CALM, null_histories(runs), "x"))
    assert both["betting"] == alone["betting"]
    assert both["cusum"] == alone["cusum"]


def test_a_frozen_policy_is_amended_with_the_reason(tmp_path):
    histories = null_histories([null_run(tmp_path / "null", wander=2.0)])
    frozen = CALM.freeze()
    after = calibrate(frozen, histories, "calibrated on null")
    assert after.amendments[-1].reason == "calibrated on null"
    assert after.amendments[-1].old_hash == frozen.hash
    after.verify()


def test_a_short_run_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="has 3 probe evaluations"):
        null_histories([null_run(tmp_path / "null", wander=0.1, evaluations=3)])


def test_the_command_writes_a_policy_that_loads(tmp_path):
    run, out = null_run(tmp_path / "null", wander=2.0), tmp_path / "mine.yaml"
    betting = AlertPolicy(name="mine", detectors=[BettingTest()]).freeze()
    betting.save(tmp_path / "calm.yaml")
    options = ["--policy", str(tmp_path / "calm.yaml"), "--out", str(out)]
    result = CliRunner().invoke(app, ["policy", "calibrate", str(run), *options])
    assert result.exit_code == 0, result.output
    assert "false alarms before: 1, after: 0" in result.output
    loaded = kinds(AlertPolicy.load(out))
    assert loaded["betting"].tolerated == pytest.approx(0.30, abs=0.011)
    assert AlertPolicy.load(out).amendments[-1].old_hash == betting.hash
    written = out.read_bytes()
    again = CliRunner().invoke(app, ["policy", "calibrate", str(run), *options])
    assert again.exit_code == 1 and "policies are not overwritten" in again.output
    assert out.read_bytes() == written


def test_the_trend_takes_longer_lines_until_null_runs_are_silent():
    """Noise that alternates looks like a trend over three evaluations, and not over more."""
    wave = np.array([0.0, 0.35, 0.7])
    history = BehaviorHistory("b", 0.9)
    for step in range(30):
        history.add_margins(step, np.full(20, 1.0) - wave[step % 3])
    policy = AlertPolicy(name="mine", detectors=[ProbeTrend()])
    assert false_alarms(policy, [history])
    after = calibrate(policy, [history], "null run")
    assert not false_alarms(after, [history])
    trend = after.detector("probe_trend")
    assert isinstance(trend, ProbeTrend) and trend.evaluations > 3
    calm = BehaviorHistory("b", 0.9, [0, 1, 2], [np.ones(20)] * 3, [float("nan")] * 3)
    assert calibrate(policy, [calm], "null run").detector("probe_trend") == ProbeTrend()
