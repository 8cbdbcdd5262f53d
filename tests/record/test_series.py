"""Series of a record: the same numbers as its readings, in little memory."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riprap.errors import RecordError
from riprap.record import Reader, Series, Writer
from riprap.types import Reading, ReadingStatus

NAMES = st.sampled_from(["refusal", "adding", ""])
SIGNALS = st.sampled_from(["margin", "interference", "kl_start"])
LAYERS = st.sampled_from(["", "model.layers.3"])
MISSING = st.sampled_from([ReadingStatus.ERROR, ReadingStatus.NOT_RUN, ReadingStatus.INSUFFICIENT])
measured = st.builds(
    lambda step, name, signal, value, layer: Reading.of(step, name, signal, value, "u", layer),
    *(st.integers(0, 20), NAMES, SIGNALS, st.floats(-9, 9), LAYERS),
)
missing = st.builds(
    lambda step, name, signal, state, why, layer: Reading(
        step, name, signal, None, "", state, layer, why
    ),
    *(st.integers(0, 20), NAMES, SIGNALS, MISSING, st.sampled_from(["a", "b"]), LAYERS),
)


@given(st.lists(st.tuples(st.integers(-5, 30), st.floats(-9, 9)), max_size=40))
def test_a_series_is_a_dict_in_the_order_of_the_steps(pairs: list[tuple[int, float]]) -> None:
    series, expected = Series(pairs), dict(sorted(dict(pairs).items()))
    assert series == expected
    assert list(series) == list(expected) and len(series) == len(expected)
    assert list(series.pairs()) == list(expected.items())
    assert series.step_array.tolist() == list(expected)
    assert series.value_array.tolist() == list(expected.values())
    for step in range(-6, 31):
        assert series.get(step) == expected.get(step)
    assert list(series.take(range(0, len(series), 2)).pairs()) == list(expected.items())[::2]


@settings(max_examples=60, deadline=None)
@given(st.lists(measured | missing, max_size=40), st.integers(0, 40))
def test_series_and_missing_are_those_of_the_readings(readings: list[Reading], kept: int) -> None:
    writer = Writer()
    writer.add_readings(readings[:kept])
    position = writer.position()
    if kept < len(readings):  # a run that was interrupted took these steps twice
        writer.add_readings(readings[kept:])
        writer.resume_from(0, position)
        writer.add_readings(readings[kept:][::-1])
    reader = Reader(writer)
    expected: dict[Any, dict[int, float]] = defaultdict(dict)
    kinds: dict[Any, list[Reading]] = defaultdict(list)
    units: dict[str, str] = {}
    for one in reader.readings():
        if one.value is not None:
            expected[one.behavior, one.signal, one.layer][one.step] = one.value
        else:
            kinds[one.state, one.behavior, one.detail, one.signal, one.layer].append(one)
        if one.signal == "margin":
            units.setdefault(one.behavior, "")
            units[one.behavior] = one.unit or units[one.behavior]
    assert reader.series() == expected
    assert reader.missing() == [
        (group[0], len(group), max(one.step for one in group)) for group in kinds.values()
    ]
    assert list(reader.units("margin").items()) == list(units.items())


BAD = {
    "value": "'much'",
    "step": "'late'",
    "behavior": "x'00'",
    "signal": "x'00'",
}


@pytest.mark.parametrize("column", BAD)
def test_a_damaged_reading_is_named(tmp_path: Path, column: str) -> None:
    row = {
        "step": "1",
        "behavior": "'b'",
        "signal": "'s'",
        "value": "0.5",
        "unit": "''",
        "state": "'MEASURED'",
        "layer": "''",
        "detail": "''",
    } | {column: BAD[column]}
    with closing(Writer(tmp_path)) as writer:
        writer.add_readings([Reading.of(0, "b", "s", 1.0)])
        writer.flush()
        statement = f"INSERT INTO readings ({', '.join(row)}) VALUES ({', '.join(row.values())})"
        writer.connection.execute(statement)
    with Reader(tmp_path) as reader, pytest.raises(RecordError, match="damaged"):
        reader.series()


@pytest.mark.parametrize(
    ("state", "value"),
    [("MEASURED", "NULL"), ("MEASURED", "9e999"), ("ERROR", "1.0"), ("ODD", "NULL")],
)
def test_a_status_that_does_not_fit_its_value_is_named(
    tmp_path: Path, state: str, value: str
) -> None:
    with closing(Writer(tmp_path)) as writer:
        writer.connection.execute(
            "INSERT INTO readings (step, behavior, signal, value, unit, state, layer, detail) "
            f"VALUES (1, 'b', 's', {value}, '', '{state}', '', '')"
        )
    with Reader(tmp_path) as reader, pytest.raises(RecordError, match="damaged"):
        reader.missing()
        reader.series()
