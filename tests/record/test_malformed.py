"""One malformed row never stops a record: it becomes an `ERROR` reading with the reason."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from loops import task, train
from riprap import AlertPolicy, Behavior, Monitor
from riprap.record import FILE_NAME, Reader, Writer
from riprap.signals import Signal, default
from riprap.types import Action, Alert, Level, Reading, ReadingStatus

GOOD = Reading(7, "refusal", "margin", 0.5, "logits")


def forged(**fields: Any) -> Reading:
    """Return a reading whose checks were passed over, as in a subclass or by unpickling."""
    reading = Reading(3, "refusal", "mine", 1.0)
    for name, value in fields.items():
        object.__setattr__(reading, name, value)
    return reading


MALFORMED: dict[str, Any] = {
    "not a reading": None,
    "a tuple": (3, "refusal", "mine", 1.0),
    "NaN for a name": forged(behavior=math.nan),
    "bytes for a name": forged(signal=b"mine"),
    "a list for a name": forged(behavior=["refusal"]),
    "a number for a unit": forged(unit=3),
    "a huge step": forged(step=2**63),
    "a huge negative step": forged(step=-(2**70)),
    "half a step": forged(step=1.5),
    "NaN for a step": forged(step=math.nan),
    "a text for a step": forged(step="3"),
    "a huge value": forged(value=10**400),
    "NaN for a value": forged(value=math.nan),
    "a tensor of two values": forged(value=torch.ones(2)),
    "a text for a value": forged(value="high"),
    "no value": forged(value=None),
    "an unknown status": forged(state="FINE"),
    "a value without status": forged(state=None),
}
TOLERATED: dict[str, tuple[Any, Reading]] = {
    "no unit": (forged(unit=None), Reading(3, "refusal", "mine", 1.0)),
    "a surrogate": (forged(signal="layer \udcff"), Reading(3, "refusal", "layer \\udcff", 1.0)),
    "NUL": (forged(layer="a\0b"), Reading(3, "refusal", "mine", 1.0, layer="a\0b")),
    "numpy": (forged(step=np.int32(3), value=np.float16(1)), Reading(3, "refusal", "mine", 1.0)),
    "torch": (forged(step=torch.tensor(3), value=torch.tensor(1.0)), GOOD),
}
TOLERATED["torch"] = (TOLERATED["torch"][0], Reading(3, "refusal", "mine", 1.0))


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_reading_becomes_an_error(tmp_path: Path, case: str) -> None:
    writer = Writer(tmp_path)
    writer.add_readings([GOOD])
    writer.add_readings([GOOD, MALFORMED[case], GOOD])
    writer.close()
    first, before, bad, after = Reader(tmp_path).readings()
    assert first == before == after == GOOD
    assert bad.state is ReadingStatus.ERROR
    assert bad.value is None
    assert "malformed" in bad.detail
    assert bad.step in (3, 7)  # its own, or the latest


@pytest.mark.parametrize("case", TOLERATED)
def test_what_can_be_kept_is_kept(tmp_path: Path, case: str) -> None:
    given, wanted = TOLERATED[case]
    writer = Writer(tmp_path)
    writer.add_readings([given])
    writer.close()
    assert Reader(tmp_path).readings() == [wanted]


def test_a_malformed_alert_action_or_event_becomes_an_error(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    circular: dict[str, Any] = {}
    circular["self"] = circular
    anything: Any = object()
    writer.add_alert(Alert(3, "refusal", anything, "mine", "soon"))
    writer.add_alert(Alert(3, "refusal", Level.WATCH, "mine", anything))
    writer.add_alert(Alert(3, "refusal", Level.WATCH, "mine", "soon", (), anything))
    writer.add_action(Action(3, "mine", "update", True, "done", {"a": anything}))
    writer.add_action(anything)
    writer.add_event(3, "selection", facts=circular)
    good = Alert(4, "refusal", Level.WATCH, "mine", "soon \udcff", (forged(unit=None),))
    writer.add_alert(good)
    writer.add_action(Action(4, "mine", "update", True, "", {"a": torch.tensor(0.5)}))  # type: ignore[dict-item]
    writer.close()
    with Reader(tmp_path) as reader:
        assert [reading.state for reading in reader.readings()] == [ReadingStatus.ERROR] * 6
        assert all("malformed" in reading.detail for reading in reader.readings())
        (alert,) = reader.alerts()
        assert alert.message == "soon \\udcff"
        assert alert.readings == (Reading(3, "refusal", "mine", 1.0),)
        (action,) = reader.actions()
        assert action.before == {"a": 0.5}


def test_a_row_that_sqlite_refuses_is_isolated(tmp_path: Path) -> None:
    """Rows of any table, at the commit; the rest of the transaction is written."""
    writer = Writer(tmp_path)
    writer.add_readings([GOOD])
    writer.add_margins(2**70, "refusal", np.ones(2))
    writer.add_margins(8, "half \udcff", np.ones(2))
    writer.add_event(2**65, "selection")
    writer.add_event(9, None)  # type: ignore[arg-type]
    writer.add_margins(9, "refusal", np.ones(2))
    writer.close()
    with Reader(tmp_path) as reader:
        assert reader.readings()[0] == GOOD
        assert [r.state for r in reader.readings()[1:]] == [ReadingStatus.ERROR] * 4
        assert list(reader.margins("refusal")) == [9]
        assert reader.events() == []


def test_any_exception_rolls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path)
    writer.add_readings([GOOD])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_insert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.flush()
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, timeout=0)
    other.execute("BEGIN IMMEDIATE")  # the interrupted transaction holds no lock
    other.execute("ROLLBACK")
    writer.close()
    assert Reader(tmp_path).readings() == [GOOD]


class Mine(Signal):
    """A signal of somebody who is still learning how."""

    name = "mine"

    def __init__(self, given: Any) -> None:
        self.given = given

    def on_update(self, view: Any) -> Any:
        return self.given if view.step == 2 else []

    on_gradient = on_probe_evaluation = on_update


@pytest.mark.parametrize("given", [None, 3, [None], [MALFORMED["a list for a name"]], "abc"])
def test_a_malformed_signal_stops_neither_the_record_nor_the_monitor(
    learned: nn.Module, memory: Behavior, tmp_path: Path, given: Any
) -> None:
    counts = []
    for signals in (default(), [*default(), Mine(given)]):
        run = tmp_path / str(len(signals))
        policy = AlertPolicy.default()
        monitor = Monitor([memory], policy, probe_every=2, run_dir=run, signals=signals)
        optimizer = torch.optim.SGD(learned.parameters(), lr=1e-3)
        with monitor.watch(learned, optimizer):
            train(learned, optimizer, task(6))
        with Reader(run) as reader:
            readings = reader.readings()
        counts.append([(r.step, r.signal) for r in readings if r.state is ReadingStatus.MEASURED])
    assert counts[0] == counts[1]
    errors = [r for r in readings if r.state is ReadingStatus.ERROR]
    assert errors
    assert {r.step for r in errors} <= {2, 3}
    assert all(r.signal in ("mine", "record") for r in errors)
