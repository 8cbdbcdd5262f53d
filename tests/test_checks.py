"""Wrong calls of public names are refused in one sentence: what, where, and what is right."""

from __future__ import annotations

import copy
import inspect
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from riprap import AlertPolicy, Behavior, Monitor, diagnosis, guards, probe_sets, selection
from riprap._checks import check_count, checked
from riprap.detectors import ProbeTrend, Threshold
from riprap.errors import RiprapError

MODEL = nn.Linear(1, 1)


def behavior() -> Behavior:
    return Behavior("b", range(9), lambda model, probes: torch.ones(9) + 0 * model.weight.sum())


def watch(guard: Any = None, **options: Any) -> None:
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    with Monitor([behavior()]).watch(MODEL, optimizer, guard, **options):
        pass


BATCHES = [{"input_ids": torch.ones(2, 3, dtype=torch.long)}]
CALLS: list[tuple[Callable[[], Any], str]] = [
    (lambda: guards.SelfDistillationBuffer(behavior()), r"as in SelfDistillationBuffer\(\[b\]\)"),  # type: ignore[arg-type]
    (lambda: guards.SelfDistillationBuffer(["b"]), r"'b' is none; riprap\.probe_sets\.load"),  # type: ignore[list-item]
    (lambda: guards.SelfDistillationBuffer(), "missing a required argument: 'behaviors'"),  # type: ignore[call-arg]
    (lambda: guards.LwF([behavior()]), r"LwF\(strength=a list\): give a number; it takes str"),  # type: ignore[arg-type]
    (lambda: guards.LwF("1"), r"LwF\(strength='1'\): give a number"),  # type: ignore[arg-type]
    (lambda: guards.DERpp(), "DERpp: missing a required argument: 'batches'; it takes batches"),  # type: ignore[call-arg]
    (lambda: guards.Replay(BATCHES, fraction="0.2"), r"Replay\(fraction='0.2'\): give a number"),  # type: ignore[arg-type]
    (lambda: guards.AGEM(strength=1), "unexpected keyword argument 'strength'; it takes behav"),  # type: ignore[call-arg]
    (lambda: guards.AutoGuard([behavior()], BATCHES), "too many positional arguments; it takes"),  # type: ignore[misc]
    (lambda: watch(guards.AGEM(behavior())), "agem: behaviors=a Behavior: give a list"),  # type: ignore[arg-type]
    (lambda: watch(guards.AGEM("b")), "agem: behaviors='b': give a list of behaviors"),
    (lambda: watch(guards.AGEM([1])), "agem: behaviors has 1, which is neither"),  # type: ignore[list-item]
    (lambda: watch(guards.AGEM(refresh=0)), "agem: refresh=0: give a whole number of at least 1"),
    (lambda: guards.Chain([guards.AGEM()]), r"Chain: a list is no guard; give guards"),  # type: ignore[arg-type]
    (lambda: guards.Chain(guards.AGEM), "Chain: the class AGEM is no guard"),  # type: ignore[arg-type]
    (lambda: guards.OnAlert("AGEM"), "OnAlert: 'AGEM' is no guard"),  # type: ignore[arg-type]
    (lambda: guards.Rollback(every="50"), r"Rollback\(every='50'\): give a whole number"),  # type: ignore[arg-type]
    (lambda: Monitor(), "nothing to monitor: give at least one behavior"),
    (lambda: Monitor([behavior()], guard=None), "unexpected keyword argument 'guard'"),  # type: ignore[call-arg]
    (lambda: Monitor([behavior()], keep_passing="no"), r"keep_passing='no'\): give True or Fal"),  # type: ignore[arg-type]
    (lambda: Monitor([behavior()], resume="runs/a"), r"resume='runs/a'\): give True or False"),  # type: ignore[arg-type]
    (lambda: Monitor([behavior()], run_dir=3), "run_dir=3: give a folder"),  # type: ignore[arg-type]
    (lambda: Monitor([behavior()], metadata="x"), "metadata='x': give a dict"),  # type: ignore[arg-type]
    (lambda: Monitor([behavior()], feature_layer=3), r"feature_layer=3\): give a text or None"),  # type: ignore[arg-type]
    (lambda: Monitor([behavior()], modules=3), "modules=3: give a list of names"),  # type: ignore[arg-type]
    (lambda: watch(step=9), "unexpected keyword argument 'step'; it takes model, optimizer, guar"),
    (lambda: Behavior("b"), "Behavior: missing a required argument: 'probes'"),  # type: ignore[call-arg]
    (lambda: behavior().split("half"), r"split\(n='half'\): give a whole number"),  # type: ignore[arg-type]
    (lambda: probe_sets.load("refusal"), "load: missing a required argument: 'tokenizer'"),  # type: ignore[call-arg]
    (lambda: AlertPolicy("default"), r"give values by name \(name=, detectors="),  # type: ignore[call-arg]
    (lambda: AlertPolicy(), "AlertPolicy: key 'name' is missing"),  # type: ignore[call-arg]
    (lambda: AlertPolicy(name="x", detectors=[]), "'detectors': Tuple should have at least 1"),  # type: ignore[arg-type]
    (lambda: ProbeTrend(horizon=0), "ProbeTrend: 'horizon': Input should be greater"),
    (lambda: Threshold(min_score=0.9), "unknown key 'min_score'; the keys here are kind, signal"),  # type: ignore[call-arg]
    (lambda: selection.Selector(ratio="0.2"), r"Selector\(ratio='0.2'\): give a number"),  # type: ignore[arg-type]
    (lambda: selection.Selector("least_harm", behaviors=behavior()), r"behaviors=\[b\]"),  # type: ignore[arg-type]
    (lambda: selection.Selector().attach(MODEL), "missing a required argument: 'optimizer'"),  # type: ignore[call-arg]
    (lambda: selection.gradient_norms(BATCHES[0], MODEL), "model=a dict.: give a torch.nn.Module"),  # type: ignore[arg-type]
    (lambda: diagnosis.recover(MODEL, [behavior()], BATCHES), "behavior=a list.: give a riprap.B"),  # type: ignore[arg-type]
    (lambda: diagnosis.basin(MODEL, behavior()), r"as in basin\(model, \[b\]\)"),  # type: ignore[arg-type]
    (lambda: diagnosis.divergence(MODEL, "base", [[1]]), "reference='base': give the model"),  # type: ignore[call-overload]
]


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[words for _, words in CALLS])
def test_a_wrong_call_is_one_sentence(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(RiprapError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_right_calls_signatures_and_copies_are_as_before() -> None:
    guard = guards.LwF(2, temperature=3)
    assert (guard.strength, guard.temperature) == (2, 3)
    for twin in (copy.deepcopy(guard), pickle.loads(pickle.dumps(guards.DERpp(BATCHES)))):
        assert isinstance(twin, guards.Guard)
    assert list(inspect.signature(guards.LwF).parameters)[:1] == ["strength"]
    assert list(inspect.signature(Monitor).parameters)[:2] == ["behaviors", "policy"]

    @checked
    def add(one: int, *more: int, scale: float | None = None, name: str = "", **rest: int) -> int:
        return one + sum(more)

    assert add(1, 2, 3, scale=2, odd=4) == 6
    with pytest.raises(RiprapError, match=r"add\(scale='2'\): give a number or None$"):
        add(1, scale="2")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None])
def test_a_count_is_a_whole_number(value: Any) -> None:
    with pytest.raises(RiprapError, match=r"n=.*: give a whole number of at least 1, or nothing"):
        check_count("n", value, otherwise=", or nothing")
    check_count("n", 1)


def test_a_guard_may_derive_from_abc() -> None:
    class Base(guards.Guard, ABC):
        name = "base"

        @abstractmethod
        def amount(self) -> float: ...

    class Whole(Base):
        def amount(self) -> float:
            return 1.0

    assert Whole(shadow=True).shadow and isinstance(Whole(), guards.Guard)
    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]
    with pytest.raises(RiprapError, match="unexpected keyword argument 'sahdow'"):
        Whole(sahdow=True)  # type: ignore[call-arg]
