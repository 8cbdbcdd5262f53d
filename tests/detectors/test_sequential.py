"""CUSUM, Page-Hinkley and deviation against recursions written out, and what they are for."""

import numpy as np
import pytest

from riprap.detectors import CUSUM, BehaviorHistory, Deviation, PageHinkley
from riprap.detectors._cumulative import reflected_sum


def history_of(values, spread=0.5, signal=None):
    """A history whose mean margins are `values`, or with a signal of these values."""
    history = BehaviorHistory("b", 0.9)
    around = np.linspace(-spread, spread, 20)
    for step, value in enumerate(values):
        history.add_margins(step, around + (10.0 if signal else value))
        if signal:
            history.signals.setdefault(signal, []).append((step, value))
    return history


RNG = np.random.default_rng(3)
NOISE = 10 + RNG.normal(0, 0.02, 40)
FALLING = NOISE - np.concatenate([np.zeros(20), np.linspace(0, 2, 20)])
RISING = NOISE + np.linspace(0, 3, 40)


def test_reflected_sum_is_the_recursion():
    steps = np.random.default_rng(0).normal(size=200)
    s, expected = 0.0, []
    for step in steps:
        s = max(0.0, s + step)
        expected.append(s)
    assert reflected_sum(steps) == pytest.approx(expected)


def test_cusum_is_the_textbook_recursion_in_units_of_the_standard_error():
    history = history_of(FALLING)
    scale = history.margins[0].std(ddof=1) / np.sqrt(20)
    s, expected = 0.0, []
    for margins in history.margins:
        s = max(0.0, s + (history.margins[0].mean() - margins.mean()) / scale - 0.5)
        expected.append(s)
    assert CUSUM().statistic(history) == pytest.approx(expected)


def test_page_hinkley_counts_from_the_running_mean():
    history = history_of(FALLING)
    s, seen, expected = 0.0, [], []
    for margins in history.margins:
        seen.append(margins.mean())
        s = max(0.0, s + (np.mean(seen) - seen[-1]) / 2.0 - 0.25)
        expected.append(s)
    assert PageHinkley(scale=2.0, allowance=0.25).statistic(history) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [CUSUM, PageHinkley])
def test_a_fall_alarms_and_noise_or_a_rise_does_not(kind):
    detector = kind(scale=0.1)
    assert detector.check(history_of(FALLING)) is not None
    assert detector.check(history_of(NOISE)) is None
    assert detector.check(history_of(RISING)) is None


def test_a_larger_scale_is_more_patient():
    assert CUSUM(scale=0.1).check(history_of(FALLING)) is not None
    assert CUSUM(scale=100.0).check(history_of(FALLING)) is None


def test_other_signals_need_a_scale():
    history = history_of(FALLING, signal="projection")
    assert CUSUM(signal="projection").check(history) is None
    assert CUSUM(signal="projection", scale=0.1).check(history) is not None


def test_deviation_looks_at_one_side_only():
    history = history_of(FALLING, signal="spectral_entropy")
    assert Deviation(signal="spectral_entropy", side="below").check(history) is not None
    assert Deviation(signal="spectral_entropy", side="above").check(history) is None


def test_deviation_says_nothing_while_it_learns():
    detector = Deviation(signal="spectral_entropy", first=8)
    assert detector.check(history_of(FALLING[:8] - 100, signal="spectral_entropy")) is None


def test_a_signal_not_read_at_the_last_evaluation_says_nothing():
    history = history_of(FALLING, signal="spectral_entropy")
    history.add_margins(99, np.full(20, 10.0))
    assert Deviation(signal="spectral_entropy").check(history) is None


def test_a_scale_by_behavior_speaks_of_that_behavior_only():
    assert CUSUM(scale={"b": 0.1}).check(history_of(FALLING)) is not None
    other = history_of(FALLING, signal="projection")
    assert CUSUM(signal="projection", scale={"other": 0.1}).check(other) is None
