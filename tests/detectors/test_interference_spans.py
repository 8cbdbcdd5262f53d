"""An entry of interference covers the steps since the entry or the evaluation before it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riprap.detectors import BehaviorHistory, ForecastDetector, history_from_record
from riprap.detectors._trend import interference_per_step, realized_changes, shaped_changes
from riprap.types import Reading, ReadingStatus


def history_of(lows: list[float], steps: list[int], **interference: float) -> BehaviorHistory:
    history = BehaviorHistory("b", 0.9)
    for step, low in zip(steps, lows, strict=True):
        history.add_margins(step, np.array([low, low, low, *[50.0] * 17]))
    history.interference = {int(name[1:]): value for name, value in interference.items()}
    return history


def shaped_by_step(history: BehaviorHistory, lows: np.ndarray) -> np.ndarray:
    """The rule for one entry per step: as it was before an entry could cover several."""
    gaps = np.diff(history.steps)
    changes = np.repeat(np.diff(lows) / np.maximum(gaps, 1), gaps)
    entries = np.array([history.interference.get(s + 1, np.nan) for s in range(len(changes))])
    for begin, end in zip(history.steps[:-1], history.steps[1:], strict=True):
        shape = entries[begin:end]
        if len(shape) > 1 and np.isfinite(shape).all():
            changes[begin:end] += shape - shape.mean()
    return changes


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_with_an_entry_per_step_every_bit_is_as_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = [0, *np.cumsum(rng.integers(1, 8, rng.integers(1, 12))).tolist()]
    lows = rng.normal(size=len(steps))
    history = history_of(list(lows), steps)
    history.interference = {s: float(rng.normal()) for s in range(1, steps[-1] + 3)}
    for step in rng.choice(steps[-1], rng.integers(0, 3)).tolist():  # updates not measured
        history.interference[step + 1] = math.nan
    assert shaped_changes(history, lows).tolist() == shaped_by_step(history, lows).tolist()


def test_an_entry_is_spread_over_the_steps_since_the_one_before() -> None:
    history = history_of([9.0, 5.0], [0, 6], s2=-1.0, s6=-6.0)
    assert interference_per_step(history, history.steps).tolist() == [
        -0.5,
        -0.5,
        -1.5,
        -1.5,
        -1.5,
        -1.5,
    ]
    shaped = shaped_changes(history, np.array([9.0, 5.0]))
    assert shaped.sum() == pytest.approx(-4)
    assert shaped[2] - shaped[1] == pytest.approx(-1)


def test_an_evaluation_begins_a_new_span() -> None:
    history = history_of([9.0, 8.0, 7.0], [0, 4, 8], s2=-2.0, s6=-1.0, s8=-4.0)
    expected = [-1.0, -1.0, math.nan, math.nan, -0.5, -0.5, -2.0, -2.0]
    np.testing.assert_equal(interference_per_step(history, history.steps), expected)
    margins = np.array([9.0, 8.0, 7.0])
    even, shaped = realized_changes(history, margins), shaped_changes(history, margins)
    assert shaped[:4].tolist() == even[:4].tolist()  # not measured up to the evaluation
    assert shaped[4:].tolist() == [0.5, 0.5, -1.0, -1.0]


def test_one_entry_per_evaluation_says_nothing_of_the_shape() -> None:
    history = history_of([9.0, 8.0, 4.0], [0, 4, 8], s4=-1.0, s8=-3.0)
    margins = np.array([9.0, 8.0, 4.0])
    assert shaped_changes(history, margins) == pytest.approx(realized_changes(history, margins))


def test_a_first_evaluation_after_step_0_shifts_nothing() -> None:
    history = history_of([9.0, 5.0], [3, 7], s2=9.0, s5=0.0, s7=-2.0)
    assert interference_per_step(history, history.steps).tolist() == [0.0, 0.0, -1.0, -1.0]
    assert shaped_changes(history, np.array([9.0, 5.0])).tolist() == [-0.5, -0.5, -1.5, -1.5]


def test_the_sum_since_the_last_evaluation_is_that_of_the_entries_after_it() -> None:
    history = history_of([9.0, 5.0], [0, 6], s2=-1.0, s6=-6.0, s9=-0.25, s12=-0.5)
    assert history.interference_since_last_probe() == -0.75
    history.add_interference(13, None)
    assert history.interference_since_last_probe() == -0.75
    history.add_margins(13, history.margins[0])
    assert history.interference_since_last_probe() == 0.0


def test_the_sum_does_not_walk_the_whole_run() -> None:
    history = history_of([9.0, 5.0], [0, 6])
    walked: list[int] = []

    class Counting(dict[int, float]):
        def __iter__(self) -> Iterator[int]:
            walked.extend(self.keys())
            return super().__iter__()

        def __reversed__(self) -> Iterator[int]:
            for step in super().__reversed__():
                walked.append(step)
                yield step

        def __getitem__(self, step: int) -> float:
            walked.append(step)
            return super().__getitem__(step)

    history.interference = Counting(dict.fromkeys(range(1, 10_001), 1.0))
    history.last_probe_step = 9_990
    assert history.interference_since_last_probe() == 10.0
    assert 10 <= len(walked) <= 22


def record_of(entries: dict[int, float | None]) -> list[Reading]:
    return [
        Reading(step, "b", "interference", state=ReadingStatus.ERROR, detail="unknown")
        if value is None
        else Reading.of(step, "b", "interference", value, "margin")
        for step, value in entries.items()
    ]


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.integers(1, 40), st.none() | st.floats(-2, 0.5), max_size=40),
    st.lists(st.integers(1, 8), min_size=3, max_size=6),
)
def test_a_live_run_and_its_record_forecast_the_same(
    entries: dict[int, float | None], gaps: list[int]
) -> None:
    entries = dict(sorted(entries.items()))
    steps = [0, *np.cumsum(gaps).tolist()]
    live = BehaviorHistory("b", 0.9)
    forecasts = []
    for step in range(steps[-1] + 1):
        if step in entries:
            live.add_interference(step, entries[step])
        if step in steps:
            low = 10 - 0.2 * step - 0.003 * step**2
            live.add_margins(step, np.array([low, low, low, *[50.0] * 17]))
            forecasts.append(ForecastDetector().forecast(live))
    margins = dict(zip(live.steps, live.margins, strict=True))
    recorded = history_from_record("b", 0.9, margins, record_of(entries))
    restored = BehaviorHistory("b", 0.9)
    restored.load_state_dict(live.state_dict())
    for known in (recorded, restored):
        then = [ForecastDetector().forecast(known.truncated(step)) for step in steps]
        assert then == forecasts


def test_a_number_is_not_replaced_by_its_absence() -> None:
    history = BehaviorHistory("b", 0.9)
    history.add_interference(3, -1.0)
    history.add_interference(3, None)
    history.add_interference(4, None)
    history.add_interference(4, -2.0)
    assert history.interference == {3: -1.0, 4: -2.0}


@pytest.mark.parametrize("pair", [[math.nan, 1.0], [1.0, math.inf]])
def test_a_state_with_other_numbers_is_refused(pair: list[float]) -> None:
    history = BehaviorHistory("b", 0.9)
    state = history.state_dict() | {"predicted": torch.tensor([pair], dtype=torch.float64)}
    with pytest.raises(ValueError, match="interference"):
        history.load_state_dict(state)
