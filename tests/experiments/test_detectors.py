"""The detectors experiment: resampling, planted declines, paths and their measures."""

import numpy as np
import pytest

from experiments.detectors.detector_paths import (
    Proportion,
    area,
    bound_of,
    delays,
    first_above,
    path_of,
    tuned_bound,
)
from experiments.detectors.plan import Plan
from experiments.detectors.resample import (
    SHAPES,
    PlantedDecline,
    at_the_edge,
    calm_schedule,
    draw,
    fall,
    leveled,
)
from experiments.harness.preregistration import Preregistration
from riprap.detectors import CUSUM, BettingTest, SlopeDetector, Threshold, reevaluate

TERMS = Preregistration.named("detectors")
PLAN = Plan.of(TERMS)


def null_run(seed, gain=0.0, n=48):
    rng = np.random.default_rng(seed)
    start = rng.normal(8, 0.5, n)
    course = np.linspace(0, gain, PLAN.steps + 1)[:, None]
    noise = np.cumsum(rng.normal(0, 0.002, (PLAN.steps + 1, n)), 0)
    return {name: (start + course + noise).astype(np.float32) for name in ("A", "B")}


RUNS = [null_run(seed, gain=2.0) for seed in range(3)]


def test_the_preregistration_is_frozen_and_its_seeds_are_apart():
    TERMS.verify()
    assert len(PLAN.null_seeds) >= 50
    assert PLAN.bootstraps >= 1000


def test_visits_of_a_calm_monitor_are_dense_at_first_and_end_at_the_longest_gap():
    visits = calm_schedule(PLAN)
    assert visits[:8] == list(range(8))
    assert max(np.diff(visits)) == PLAN.every


def test_a_drawn_run_is_one_run_on_probes_drawn_again():
    drawn = draw(RUNS, 0.9, PLAN, np.random.default_rng(0))
    track = drawn.histories["A"]
    columns = {tuple(run["A"][track.steps, i].astype(float)) for run in RUNS for i in range(48)}
    seen = np.array(track.margins)
    assert all(tuple(seen[:, i]) in columns for i in range(48))
    assert len({tuple(seen[:, i]) for i in range(48)}) < 48  # with replacement
    assert track.n_behaviors == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_planted_decline_begins_at_its_onset_and_reaches_its_depth(shape):
    margins = RUNS[0]["A"].astype(float)
    lost = fall(margins, PlantedDecline(shape, 0.4), PLAN, np.random.default_rng(0))
    share = lost.mean(1) / margins[0].mean()
    assert np.all(share[: PLAN.onset] == 0)
    assert share.max() == pytest.approx(0.4, rel=0.02)
    assert lost[PLAN.onset + PLAN.span // 2].std() > 0  # not the same for every probe


def test_a_planted_decline_lowers_one_behavior_and_says_when_it_broke():
    drawn = draw(RUNS, 0.9, PLAN, np.random.default_rng(0), PlantedDecline("sudden", 1.6))
    other = next(name for name in drawn.histories if name != drawn.planted)
    assert drawn.broke == PLAN.onset
    assert drawn.histories[drawn.planted].margins[-1].mean() < 0
    assert drawn.histories[other].margins[-1].mean() > 5


def test_leveled_runs_keep_their_noise_and_lose_their_gain():
    level = leveled(RUNS[0])["A"]
    assert level[0] == pytest.approx(RUNS[0]["A"][0])
    assert level.mean(1) == pytest.approx(np.full(len(level), level[0].mean()), abs=0.15)
    assert level[-1].std() == pytest.approx(RUNS[0]["A"][-1].std(), rel=1e-4)


def test_at_the_edge_the_mean_decline_is_just_what_is_tolerated():
    edge = at_the_edge(RUNS[0], 0.05)["A"].astype(float)
    declines = (edge[0].mean() - edge[1:].mean(1)) / edge[0].mean()
    assert declines == pytest.approx(np.full(PLAN.steps, 0.05), abs=1e-5)


@pytest.mark.parametrize(
    "detector",
    [
        BettingTest(),
        CUSUM(scale=0.1),
        Threshold(signal="margin", side="below", value=0.8, relative=True),
        Threshold(signal="score", side="below", value=0.9, consecutive=3),
    ],
    ids=lambda d: d.kind,
)
def test_a_path_is_over_its_bound_where_the_detector_alerts(detector):
    for seed in range(3):
        planted = PlantedDecline("linear", 0.8 if seed else 0.1)
        drawn = draw(RUNS, 0.9, PLAN, np.random.default_rng(seed), planted)
        track = drawn.histories[drawn.planted]
        path = path_of(detector, track)
        over = {
            step
            for step, value in zip(track.steps, path, strict=True)
            if value > bound_of(detector)
        }
        assert over == {alert.step for alert in reevaluate(detector, track)}


def test_the_path_of_a_forecast_is_over_its_bound_where_it_is_critical():
    drawn = draw(RUNS, 0.9, PLAN, np.random.default_rng(1), PlantedDecline("linear", 1.6))
    track, slope = drawn.histories[drawn.planted], SlopeDetector()
    over = set(np.array(track.steps)[path_of(slope, track) > bound_of(slope)])
    critical = {a.step for a in reevaluate(slope, track) if a.level == "critical"}
    assert critical
    # A forecast is cut off at its horizon, to the step.
    assert over == critical


def test_a_share_has_the_exact_interval():
    assert Proportion(0, 50).interval[1] == pytest.approx(1 - 0.025 ** (1 / 50))
    low, high = Proportion(5, 100).interval
    assert low == pytest.approx(0.0164, abs=1e-3)
    assert high == pytest.approx(0.1128, abs=1e-3)


def test_a_tuned_bound_lets_through_just_the_share_it_may():
    maxima = np.random.default_rng(0).normal(size=400)
    for rate in (0.0, 0.05, 0.2):
        assert (maxima > tuned_bound(maxima, rate)).sum() == int(rate * 400)


def test_delays_count_from_the_onset_and_what_is_never_seen_counts_as_the_rest():
    steps = [0, 10, 20, 30]
    early, never = np.array([5.0, 0, 2, 2]), np.zeros(4)
    assert first_above(early, steps, 1, since=10) == 20
    assert delays([early, never], steps, 1, onset=10).tolist() == [10, 20]


def test_the_area_is_least_for_what_sees_at_once_and_one_for_what_never_does():
    steps = list(range(101))
    maxima = np.random.default_rng(0).uniform(0, 1, 400)
    at_once, never = np.full(101, 9.0), np.full(101, -9.0)
    assert area(maxima, [at_once], steps, 0) == 0
    assert area(maxima, [never], steps, 0) == 1
