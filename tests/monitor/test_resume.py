"""A resumed run is monitored as if it had never been interrupted, or it is refused."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import resuming
from loops import task, train
from riprap import AlertPolicy, Behavior, Monitor
from riprap.detectors import Threshold
from riprap.errors import BehaviorError, ConfigError, RecordError
from riprap.record import FILE_NAME, Reader, load_state, save_state

OTHER = AlertPolicy(name="other", detectors=[Threshold(signal="score", side="below", value=0.9)])


class StoppedError(Exception):
    """Somebody pulled the plug."""


def stop_at(count: int) -> Any:
    seen = [0]

    def committed(_: int) -> None:
        seen[0] += 1
        if seen[0] == count:
            raise StoppedError

    return committed


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_an_interrupted_run_ends_with_the_readings_of_an_unbroken_one(
    tmp_path: Path, storage: str
) -> None:
    whole = resuming.train(tmp_path / "whole", gradient_storage=storage)
    with pytest.raises(StoppedError):
        resuming.train(tmp_path / "broken", gradient_storage=storage, committed=stop_at(3))
    with pytest.raises(StoppedError):
        resuming.train(tmp_path / "broken", gradient_storage=storage, committed=stop_at(2))
    broken = resuming.train(tmp_path / "broken", gradient_storage=storage)
    for left, right in zip(whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(left, right)
    assert resuming.content(tmp_path / "broken") == resuming.content(tmp_path / "whole")
    with Reader(tmp_path / "broken" / "run") as reader:
        events = [event for event in reader.events() if event["kind"] != "probe_answers"]
        kinds = [(event["kind"], event["step"]) for event in events]
        assert reader.meta()["ended"]
    # An exception closes the context, which records it; then the run continues from a checkpoint.
    kinds = [(kind, step) for kind, step in kinds if kind in ("ended", "resumed")]
    assert kinds == [("ended", 12), ("resumed", 12), ("ended", 20), ("resumed", 20), ("ended", 30)]


def test_without_the_state_the_readings_would_differ(tmp_path: Path) -> None:
    """The test above depends on the protected gradients of the checkpoint."""
    resuming.train(tmp_path / "whole")
    with pytest.raises(StoppedError):
        resuming.train(tmp_path / "broken", committed=stop_at(3))
    newest = resuming.checkpoints(tmp_path / "broken")[-1] / "monitor.safetensors"
    state = load_state(newest)
    for rows in state["protected_gradients"]["margin_gradients"]["rows"]:
        rows[0].zero_()
    save_state(newest, state)
    resuming.train(tmp_path / "broken")
    assert resuming.content(tmp_path / "broken") != resuming.content(tmp_path / "whole")


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    resuming.train(tmp_path / "whole", steps=6)
    with pytest.raises(StoppedError):
        resuming.train(tmp_path / "broken", steps=6, probe_every=2, committed=stop_at(1))
    for folder in resuming.checkpoints(tmp_path / "broken"):
        folder.rename(tmp_path / "lost")
    resuming.train(tmp_path / "broken", steps=6)
    assert resuming.content(tmp_path / "broken") == resuming.content(tmp_path / "whole")
    kept = len(resuming.every_row(tmp_path / "broken"))
    assert kept > len(resuming.every_row(tmp_path / "whole"))  # what was superseded is still there


def small(learned: nn.Module, memory: Behavior, run: Path, **options: Any) -> Monitor:
    settings = {"policy": AlertPolicy.default(), "probe_every": 5} | options
    return Monitor([memory], run_dir=run, **settings)


def state_of(learned: nn.Module, memory: Behavior, folder: Path) -> dict[str, Any]:
    monitor = small(learned, memory, folder / "first")
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(4))
        return monitor.state_dict()


def test_states_that_do_not_fit_are_refused(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    state = state_of(learned, memory, tmp_path)
    for options, text in (
        ({"probe_every": 7}, "a monitor with probe_every=5, and this one has 7"),
        ({"gradient_storage": "int8"}, "with gradient_storage='float32'"),
        ({"modules": ["0"]}, r"with modules=\[\]"),
        ({"signals": []}, "with signals="),
        ({"policy": OTHER}, "with policy="),
    ):
        with pytest.raises(ConfigError, match=text):
            small(learned, memory, tmp_path / text[:9], **options).load_state_dict(state)
    other = Monitor(
        [Behavior("other", memory.probes, memory.margins)], AlertPolicy.default(), probe_every=5
    )
    with pytest.raises(ConfigError, match="with behaviors="):
        other.load_state_dict(state)
    with pytest.raises(ConfigError, match="not a monitor's state"):
        other.load_state_dict({"model": 1})
    with pytest.raises(ConfigError, match="format 9, and this Riprap reads format 5"):
        other.load_state_dict(state | {"format": 9})
    with pytest.raises(ConfigError, match="format 3, and this Riprap reads format 5: start anew"):
        other.load_state_dict({"format": 3, "step": 4})
    with pytest.raises(ConfigError, match="not watching"):
        other.state_dict()


def test_a_state_of_another_model_is_refused(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    state = state_of(learned, memory, tmp_path)
    wider = nn.Sequential(nn.Linear(8, 17), nn.Tanh(), nn.Linear(17, 4))
    monitor = small(wider, memory, tmp_path / "second")
    monitor.load_state_dict(state)
    with pytest.raises(ConfigError, match="does not fit the trained parameters"):
        monitor.begin(wider, torch.optim.SGD(wider.parameters(), lr=1e-2))


def test_a_record_of_another_run_is_not_gone_on_with(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    state_of(learned, memory, tmp_path)
    before = len(Reader(tmp_path / "first").readings())
    with pytest.raises(
        RecordError, match=r"give another run_dir, or continue this run with .*resume"
    ):
        small(learned, memory, tmp_path / "first")
    policy = OTHER
    monitor = small(learned, memory, tmp_path / "first", resume=True, policy=policy)
    with pytest.raises(ConfigError, match="of a run with other protocol_hash"):
        monitor.begin(learned, torch.optim.SGD(learned.parameters(), lr=1e-2))
    assert len(Reader(tmp_path / "first").readings()) == before


def test_a_state_of_another_run_does_not_hide_the_readings_of_a_record(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    """Two runs with equal arguments, and the checkpoint of one in the folder of the other."""
    state = state_of(learned, memory, tmp_path)
    monitor = small(learned, memory, tmp_path / "other")
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(9))
    before = Reader(tmp_path / "other").readings()
    again = small(learned, memory, tmp_path / "other", resume=True)
    again.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"of another run than the record .*other"):
        again.begin(learned, optimizer)
    assert Reader(tmp_path / "other").readings() == before
    anew = small(learned, memory, tmp_path / "new", resume=True)  # an empty record hides nothing
    anew.load_state_dict(state)
    with anew.watch(learned, optimizer):
        train(learned, optimizer, task(2))
    assert Reader(tmp_path / "new").meta()["continues"] == Reader(tmp_path / "first").meta()["id"]
    own = small(learned, memory, tmp_path / "first", resume=True)
    own.load_state_dict(state)
    with own.watch(learned, optimizer):
        train(learned, optimizer, task(2))
    steps = [r.step for r in Reader(tmp_path / "first").readings() if r.signal == "interference"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_refused_beginning_leaves_the_run_free(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    broken = Behavior("memory", memory.probes, lambda model, probes: torch.ones(3) * float("nan"))
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with pytest.raises(BehaviorError, match="must be finite"):
        small(learned, broken, tmp_path / "run").begin(learned, optimizer)
    monitor = small(learned, memory, tmp_path / "run")
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(2))
    assert len(monitor.history()) > 5


def test_two_monitors_do_not_write_one_record(
    learned: nn.Module, memory: Behavior, tmp_path: Path
) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    one = small(learned, memory, tmp_path)
    two = small(learned, memory, tmp_path)
    with one.watch(learned, optimizer):
        train(learned, optimizer, task(2))
        with pytest.raises(RecordError, match="an earlier monitor of this process still writes"):
            two.begin(learned, optimizer)
        late = small(learned, memory, tmp_path, resume=True)
        with pytest.raises(RecordError, match="an earlier monitor of this process still writes"):
            late.begin(learned, optimizer)
        train(learned, optimizer, task(2))
    history = one.history()
    assert history[history.signal == "interference"].step.tolist() == [1, 2, 3, 4]
    with late.watch(learned, optimizer):  # once it has ended, another may continue
        pass


@pytest.mark.parametrize("illness", ["full", "locked"])
def test_a_record_that_cannot_be_written_for_a_while_loses_nothing(
    learned: nn.Module, memory: Behavior, tmp_path: Path, illness: str
) -> None:
    """Training, watch and alerts go on; rows that could not be written are written later."""
    healthy, ill = (small(learned, memory, tmp_path / name) for name in ("healthy", "ill"))
    start = {name: value.clone() for name, value in learned.state_dict().items()}

    def run(monitor: Monitor, then: Any = lambda: None, after: Any = lambda: None) -> None:
        learned.load_state_dict(start)
        optimizer = torch.optim.SGD(learned.parameters(), lr=0.5)
        with monitor.watch(learned, optimizer):
            train(learned, optimizer, task(4))
            monitor.record.flush()
            then()
            for batch in task(30):
                monitor.record._flushed = -1e9  # long ago: the next readings are committed
                train(learned, optimizer, [batch])
            after()
            train(learned, optimizer, task(2))

    run(healthy)
    expected = {name: value.clone() for name, value in learned.state_dict().items()}
    other = sqlite3.connect(tmp_path / "ill" / FILE_NAME, isolation_level=None)
    connection = ill.record.connection

    def fall_ill() -> None:
        if illness == "locked":
            other.execute("BEGIN IMMEDIATE")
        else:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")

    def recover() -> None:
        if illness == "locked":
            other.execute("ROLLBACK")
        else:
            connection.execute("PRAGMA max_page_count = 1000000")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(ill, fall_ill, recover)
    ours = [str(one.message) for one in said if "riprap" in str(one.message)]
    assert len(ours) == 1, ours
    assert illness in ours[0] and "training goes on" in ours[0]
    for name, value in learned.state_dict().items():
        assert torch.equal(value, expected[name])
    assert healthy.alerts and ill.alerts == healthy.alerts
    with Reader(tmp_path / "ill") as one, Reader(tmp_path / "healthy") as two:
        assert one.readings() == two.readings()
        assert one.alerts() == two.alerts()


def test_a_state_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for name in ("empty", "nowhere"):
        with pytest.raises(RecordError, match="cannot read a monitor's state"):
            load_state(tmp_path / name)


def test_a_state_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    save_state(file, {"a": torch.ones(2), "b": [1, None, {"c": (2.5, "x")}]})
    with pytest.raises(RecordError, match="object is not JSON serializable"):
        save_state(file, {"a": object()})
    back = load_state(file)
    assert back["b"] == [1, None, {"c": (2.5, "x")}]
    assert torch.equal(back["a"], torch.ones(2))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordError, match="cannot write the monitor's state"):
        save_state(tmp_path / "file" / "state", {})
