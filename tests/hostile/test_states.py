"""A monitor's state from a file or a caller is restored completely, or refused in one sentence."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import resuming
from riprap import guards
from riprap.errors import RecordError, RiprapError
from riprap.monitor import Monitor
from riprap.record import load_state, save_state
from tiny import make_llama

NAN = float("nan")
WRONG = [
    *(None, True, -1, 0, 10**30, 2.5, NAN, "", "x", [], {}, (), [[]], {"a": 1}, [None], ["x", 1]),
    *(torch.zeros(()), torch.zeros(3), torch.full((2, 2), NAN), torch.zeros(2, 3, 1)),
]


@functools.cache
def taken() -> tuple[dict[str, Any], Any]:
    """A state after three steps, and the model that it is of."""
    model = make_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with (
        warnings.catch_warnings(action="ignore"),
        resuming.monitor(None).watch(model, optimizer) as monitor,
    ):
        train(model, optimizer, 3)
        return copy.deepcopy(monitor.state_dict()), copy.deepcopy(model)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        ids = resuming.ROWS[4 * step : 4 * step + 4]
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something may be changed: every key, and the first and last entries of lists."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from places(part, (*path, key))
    elif isinstance(value, list) and value:
        for index in {0, len(value) - 1}:
            yield from places(value[index], (*path, index))


PLACES = st.deferred(lambda: st.sampled_from(list(places(taken()[0]))))


def changed(path: tuple[Any, ...], how: str, wrong: Any) -> Any:
    state = copy.deepcopy(taken()[0])
    holder = state
    for part in path[:-1]:
        holder = holder[part]
    if how == "lost":
        del holder[path[-1]]
    elif how == "extra" and isinstance(holder, dict):
        holder["extra"] = wrong
    else:
        holder[path[-1]] = wrong
    return state


def one_sentence(error: RiprapError) -> None:
    text = str(error)
    assert 0 < len(text) < 1000
    assert "Traceback" not in text
    assert "pydantic" not in text


def goes_on(monitor: Monitor, steps: int) -> None:
    model = copy.deepcopy(taken()[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with monitor.watch(model, optimizer):
        train(model, optimizer, 2)
    assert monitor.step == steps + 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(PLACES, st.sampled_from(["lost", "extra", "wrong"]), st.sampled_from(WRONG))
@settings(max_examples=100, deadline=None)
def test_a_state_that_was_tampered_with_is_refused_or_works(
    path: tuple[Any, ...], how: str, wrong: Any
) -> None:
    monitor, state = resuming.monitor(None), changed(path, how, wrong)
    try:
        monitor.load_state_dict(state)
    except RiprapError as refused:
        one_sentence(refused)
        assert monitor.step == 0
        assert not monitor.alerts
        return
    try:
        goes_on(monitor, state["step"])
    except RiprapError as refused:
        one_sentence(refused)
        assert "anew" in str(refused)
        assert monitor.step == 0


@pytest.mark.filterwarnings("ignore")
def test_after_a_refusal_the_monitor_is_as_good_as_new() -> None:
    monitor = resuming.monitor(None)
    with pytest.raises(RiprapError):
        monitor.load_state_dict(changed((*HISTORIES, "words", "margins"), "wrong", []))
    goes_on(monitor, 0)
    other = resuming.monitor(None)
    other.load_state_dict(taken()[0])
    goes_on(other, 3)


def refuse(state: Any, text: str, guard: Any = None) -> None:
    """Load the state and begin; one of the two must be refused, and leave no hooks behind."""
    model, monitor = copy.deepcopy(taken()[1]), resuming.monitor(None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pytest.raises(RiprapError, match=text) as raised:
        monitor.load_state_dict(state)
        monitor.begin(model, optimizer, guard)
    one_sentence(raised.value)
    assert not optimizer._optimizer_step_pre_hooks


HISTORIES = ("tracker", "histories")
GRADIENTS = ("protected_gradients", "margin_gradients")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("path", "how", "wrong", "text"),
    [
        (("step",), "lost", None, "key 'step' is missing"),
        (("step",), "wrong", "3", "'step' has the type str"),
        (("step",), "wrong", True, "'step' has the type bool"),
        (("step",), "wrong", 10**30, "out of range"),
        (("step",), "wrong", -1, "out of range"),
        (("step",), "extra", 1, "unknown key 'extra'"),
        (("monitor", "probe_every"), "lost", None, "key 'probe_every' is missing"),
        (("monitor", "probe_every"), "wrong", torch.ones(2), "RuntimeError"),
        (("position", "margins"), "lost", None, "key 'margins' is missing"),
        (("position", "margins"), "wrong", 10**30, "out of range"),
        (("schedule", "due"), "wrong", NAN, "'due' has the type float"),
        ((*HISTORIES, "said"), "lost", None, "key 'said' is missing"),
        ((*HISTORIES, "said", "margins", 0), "wrong", torch.ones(5), r"\(n_probes,\)"),
        ((*HISTORIES, "said", "margins", 0), "wrong", torch.full((4,), NAN), "not finite"),
        ((*HISTORIES, "said", "steps", 0), "wrong", 99, "ascending integers"),
        ((*HISTORIES, "said", "predicted"), "wrong", torch.ones(3), r"shape \(n, 2\)"),
        (("tracker", "alerts"), "wrong", [["x"]], "a row holds str"),
        (
            ("tracker", "active"),
            "wrong",
            [["0", "nobody", 1, 1, "x", [], []]],
            "of a monitored behavior",
        ),
        ((*GRADIENTS, "rows", 0, 0), "wrong", torch.ones(5, 5), "other shapes"),
        ((*GRADIENTS, "norms"), "wrong", {}, "a name and a norm"),
        (("signals", "cka"), "lost", None, "key 'cka' is missing"),
        (("signals", "cka"), "extra", {}, "unknown key 'extra'"),
        (("signals", "cka"), "wrong", {"extra": 1}, r"signal 'cka' \(ValueError: key 'start_act"),
        (("signals", "cka", "x"), "extra", 1, r"signal 'cka' \(ValueError: unknown key 'extra'"),
        (("signals", "steep_alignment", "steep"), "wrong", 3, "signal 'steep_alignment'"),
        (("behaviors", "said", "reference"), "wrong", torch.full((4,), NAN), "behavior 'said'"),
        (("behaviors", "said", "reference"), "lost", None, "behavior 'said'.*KeyError"),
        (("behaviors", "said"), "wrong", [1], "'said' has the type list"),
    ],
)
def test_the_error_names_what_is_wrong(
    path: tuple[Any, ...], how: str, wrong: Any, text: str
) -> None:
    refuse(changed(path, how, wrong), text)


def test_a_state_of_the_first_format_is_refused() -> None:
    refuse(taken()[0] | {"format": 1}, "format 1, and this Riprap reads format 5: start anew")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("saved", "text"),
    [
        (3, "'guard' has the type int"),
        ({"guard": "chain", "state": []}, "'state' has the type list"),
        (None, "of a run with the guard None"),
        ({"guard": "chain", "state": {"own": {}}}, "does not fit guard 'chain'.*KeyError"),
        ({"guard": "chain", "state": {"own": {}, "parts": [{}, {}]}}, "'chain'.*ValueError"),
    ],
)
def test_the_state_of_a_guard_is_restored_or_refused(saved: Any, text: str) -> None:
    refuse(changed(("guard",), "wrong", saved), text, guards.Chain(guards.AGEM()))


# --- files ------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    file = folder / "state.safetensors"
    save_file({"t0": torch.ones(2)}, file, metadata={"riprap": text})
    return file


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 100, 1000, -1000, -1])
def test_a_file_that_was_cut_off_is_refused(left: int, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    save_state(file, taken()[0])
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(RecordError, match="cannot read a monitor's state from") as raised:
        load_state(file)
    one_sentence(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "null",
        '"x"',
        "[" * 100_000,
        '{"a": {"__tensor__": "t1"}}',
        '{"a": {"__tensor__": ["t0"]}}',
        '{"a": {"__tuple__": 5}}',
    ],
)
def test_a_file_that_holds_something_else_is_refused(text: str, tmp_path: Path) -> None:
    file = written(tmp_path, json.dumps({"a": [1, {"__tensor__": "t0"}]}))
    assert torch.equal(load_state(file)["a"][1], torch.ones(2))
    with pytest.raises(RecordError, match="monitor's state"):
        load_state(written(tmp_path, text))


def test_weights_are_no_state(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(RecordError, match="does not hold a monitor's state"):
        load_state(tmp_path / "model.safetensors")


class Marks:
    """What a hostile pickle does when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_a_pickle_by_another_name_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    torch.save({"step": Marks(tmp_path / "read")}, file)
    with pytest.raises(RecordError, match="cannot read a monitor's state"):
        load_state(file)
    assert not (tmp_path / "read").exists()


@pytest.mark.parametrize("name", [".", "missing", "a\x00b", "x" * 5000])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    for call in (load_state, functools.partial(save_state, state={})):
        if (call, name) != (load_state, name) and name == "missing":
            continue
        with pytest.raises(RecordError, match="monitor's state"):
            call(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["object", "set", "endless", "sparse", "bytes"])
def test_what_cannot_be_written_leaves_the_last_state_as_it_was(what: str, tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    unfit = {
        "object": object(),
        "set": {1, 2},
        "endless": endless,
        "sparse": torch.eye(2).to_sparse(),
        "bytes": b"x",
    }[what]
    file = tmp_path / "state.safetensors"
    save_state(file, {"a": 1})
    before = file.read_bytes()
    with pytest.raises(RecordError, match="cannot write the monitor's state"):
        save_state(file, {"a": unfit})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
