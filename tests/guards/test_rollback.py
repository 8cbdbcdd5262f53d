"""Rollback: the last healthy state comes back whole, and training goes on from it more slowly."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from guards.cases import Run, behaviors, lessons
from riprap import Behavior, Monitor, Protocol, guards
from riprap.evidence import Action, ConfigError, RiprapError
from riprap.guards.checkpoint import Training
from riprap.guards.ring import Ring
from tiny import Classifier

quiet = pytest.mark.filterwarnings("ignore:riprap. guard rollback")
pytestmark = quiet
RATE, STEPS = 0.3, 20


class Seen:
    """Weights after each step, when training was left to itself, and the batches it was given."""

    def __init__(self, guard: guards.Guard | None, rate: float = RATE, adam: bool = False) -> None:
        self.run = Run(guard, rate=rate)
        if adam:
            self.run.optimizer = torch.optim.AdamW(self.run.model.parameters(), lr=rate)
        self.weights: list[list[torch.Tensor]] = []
        self.states: list[Any] = []

    def go(self, steps: int = STEPS) -> Seen:
        run = self.run
        with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
            self._keep()
            for ids, targets in lessons(steps):
                run.step(ids, targets)
                self._keep()
        return self

    def _keep(self) -> None:
        self.weights.append(self.run.weights())
        self.states.append(copy.deepcopy(self.run.optimizer.state_dict()))

    @property
    def backs(self) -> list[Action]:
        return [action for action in self.run.monitor.actions if action.applied]


def to_step(action: Action) -> int:
    return int(action.detail.split("the state of step ")[1].split(";")[0])


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adamw"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "files"])
def test_the_state_that_comes_back_is_that_of_the_healthy_step(
    adam: bool, on_disk: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "ring" if on_disk else None
    seen = Seen(guards.Rollback(every=3, folder=folder), 0.05 if adam else RATE, adam).go()
    assert len(seen.backs) >= 2
    for action in seen.backs:
        back, now = to_step(action), action.step
        assert back < now
        assert same(seen.weights[now], seen.weights[back])
        then, later = seen.states[back], seen.states[now]
        assert same(then["state"], later["state"])  # moments, and how many steps they are of
        if back:
            assert then["state"]


def test_it_goes_on_with_later_data_and_less_haste() -> None:
    """The step after a rollback is the one that this batch and half the rate make from there."""
    seen = Seen(guards.Rollback(every=3, at_most=1)).go(10)
    action = seen.backs[0]
    assert action.before == {"learning_rate": pytest.approx(RATE)}
    assert action.after == {"learning_rate": pytest.approx(RATE / 2)}
    again = Run(None, rate=RATE / 2)
    with torch.no_grad():
        for parameter, kept in zip(
            again.model.parameters(), seen.weights[to_step(action)], strict=True
        ):
            parameter.copy_(kept)
    again.optimizer.load_state_dict(seen.states[to_step(action)])
    again.optimizer.param_groups[0]["lr"] = RATE / 2
    again.step(*lessons(10)[action.step])  # batches count from 0: this is the one after that step
    assert same(again.weights(), seen.weights[action.step + 1])


def test_what_was_broken_is_healthy_in_the_end() -> None:
    plain, guarded = Seen(None).go(40), Seen(guards.Rollback(every=3, at_most=9)).go(40)
    plain_scores, scores = (
        {n: (t.margins[-1] > 0).mean() for n, t in seen.run.monitor.tracks.items()}
        for seen in (plain, guarded)
    )
    assert max(plain_scores.values()) < 0.5
    assert min(scores.values()) >= 0.9


def test_going_back_is_no_update_and_what_is_held_is_fresh() -> None:
    """The first steps after it are predicted as well as before: r_b tells the change of a step."""
    seen = Seen(guards.Rollback(every=3, at_most=1)).go(12)
    at = seen.backs[0].step
    history = seen.run.monitor.history()
    margins = history[(history.signal == "margin") & (history.behavior == "first")]
    assert margins.step.tolist().count(at) == 2  # before going back, and after
    said = history[(history.signal == "interference") & (history.behavior == "first")]
    assert said.step.tolist() == list(range(1, 13))
    norms = history[history.signal == "norm_update"].set_index("step").value
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(seen.weights[at + 1], seen.weights[at], strict=True)]
    )
    assert norms[at + 1] == pytest.approx(float(moved.norm()), rel=1e-5)
    one = behaviors()[0]
    model = Run(None).model
    with torch.no_grad():
        for parameter, kept in zip(model.parameters(), seen.weights[at], strict=True):
            parameter.copy_(kept)
    own = torch.autograd.grad(one.margins(model, one.probes).mean(), list(model.parameters()))
    delta = zip(own, seen.weights[at + 1], seen.weights[at], strict=True)
    expected = sum(float((h.double() * (a - b).double()).sum()) for h, a, b in delta)
    found = said.set_index("step").value[at + 1]
    assert found == pytest.approx(expected, rel=1e-3)


def test_after_going_back_it_is_judged_afresh_but_the_break_stays_known() -> None:
    seen = Seen(guards.Rollback(every=3, at_most=5)).go(30)
    monitor, first = seen.run.monitor, seen.backs[0]
    assert monitor.broken()["first"] == 3 == first.step
    alerts = [(a.step, a.behavior) for a in monitor.alerts if str(a.level) == "critical"]
    assert len({step for step, _ in alerts}) >= 2  # one that stood on would not be raised again


def test_checkpoints_are_of_measured_health(tmp_path: Path) -> None:
    folder = tmp_path / "ring"
    seen = Seen(guards.Rollback(every=2, keep=3, folder=folder, at_most=9)).go(30)
    scores = seen.run.monitor.history().query("signal == 'score'")
    steps = [int(file.stem.split("-")[1]) for file in folder.iterdir()]
    assert len(steps) == 3
    for step in [*steps, *map(to_step, seen.backs)]:
        at = scores[scores.step == step].groupby("behavior").value.last()
        assert (at >= 0.9).all()


def test_the_generators_come_back_unless_that_is_not_wanted() -> None:
    def drawn() -> list[Any]:
        return [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]

    for kept in (True, False):
        run = Run(guards.Rollback(every=3, generators=kept), rate=RATE)
        seen = []
        with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
            seen.append(drawn())
            for ids, targets in lessons(4):
                run.step(ids, targets)
                seen.append(drawn())
                torch.rand(1), np.random.rand(), random.random()
        action = next(action for action in run.monitor.actions if action.applied)
        assert to_step(action) == 0
        assert same(seen[action.step], seen[0]) is kept


def test_running_statistics_and_the_gradient_scaler_come_back() -> None:
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    training = Training(model, optimizer, scaler=scaler)
    kept, before = training.take(), copy.deepcopy(model.state_dict())
    model.train()(torch.randn(9, 8)).sum().backward()
    optimizer.step()
    scaler.update(1.0)
    assert not same(dict(before), dict(model.state_dict()))
    training.put_back(kept)
    assert same(dict(before), dict(model.state_dict()))
    assert scaler.get_scale() == 4.0


SCHEDULES = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30),
    "steps": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 9]),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=40),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.ConstantLR(o, 0.5, 3),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [4],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "files"])
def test_the_cut_lasts_under_a_schedule(kind: str, on_disk: bool, tmp_path: Path) -> None:
    """After going back from step 8 to step 5 with cut ½: the rates from there, halved."""
    plain, cut = ([nn.Parameter(torch.ones(3))] for _ in range(2))
    rates = []
    for parameters in (plain, cut):
        optimizer = torch.optim.SGD(parameters, lr=0.3)
        schedule = SCHEDULES[kind](optimizer)
        training = Training(nn.Module(), optimizer, schedule)
        found = []
        for step in range(1, 21):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if parameters is cut and step == 5:
                kept = training.take()
                if on_disk:
                    from riprap.record import load_state, save_state

                    save_state(tmp_path / "one.safetensors", kept)
                    kept = load_state(tmp_path / "one.safetensors")
            if parameters is cut and step == 8:
                training.put_back(kept)
                training.slow_down(0.5)
            schedule.step()
        rates.append(found)
    assert rates[1][:8] == rates[0][:8]
    assert rates[1][8:] == pytest.approx([rate / 2 for rate in rates[0][5:17]])


def test_it_gives_up_with_a_last_word_and_leaves_a_healthy_state() -> None:
    run = Run(guards.Rollback(every=3, at_most=1), rate=RATE)
    taken = 0
    with (
        pytest.warns(UserWarning, match=r"guard rollback: .* after 1 rollbacks before it training"),
        run.monitor.watch(run.model, run.optimizer, guard=run.guard),
    ):
        for ids, targets in lessons(40):
            run.step(ids, targets)
            taken += 1
            if run.monitor.should_stop:
                break
    assert taken < 40
    assert "training is to stop" in run.monitor.should_stop
    assert sum(action.applied for action in run.monitor.actions) == 2
    for one in behaviors():
        assert (one.margins(run.model, one.probes) > 0).float().mean() >= 0.9


def test_a_loop_that_does_not_stop_is_told_so_in_the_record() -> None:
    seen = Seen(guards.Rollback(every=3, at_most=0)).go(40)
    assert len(seen.backs) == 1
    later = [action for action in seen.run.monitor.actions if not action.applied]
    assert later
    assert all("was asked to stop at step 3" in action.detail for action in later)


def test_a_shadow_leaves_training_alone() -> None:
    plain, shadow = Seen(None).go(), Seen(guards.Rollback(every=3, shadow=True)).go()
    assert same(plain.weights, shadow.weights)
    assert same(plain.states, shadow.states)
    said = shadow.run.monitor.actions
    assert said
    assert all(action.detail.startswith("shadow: ") and not action.applied for action in said)
    assert shadow.run.monitor.should_stop == ""


def test_a_behaviour_that_is_not_protected_sets_nothing_off() -> None:
    low = Behavior("low", behaviors()[1].probes, behaviors()[1].margins, floor=0.01)
    run = Run(guards.Rollback([low], every=3), rate=0.1)
    run.monitor = Monitor([behaviors()[0], low], protocol=run.monitor.protocol, every=5)
    run.go(lessons(8))
    assert run.monitor.broken()["first"] is not None
    assert not run.monitor.actions


def test_what_breaks_at_the_last_visit_is_put_back_too() -> None:
    """The probes are visited once more when the watch ends."""
    protocol = Protocol.parse({"name": "low", "detectors": [BROKEN]}, "here")
    guard = guards.Rollback(every=1)
    run = Run(guard, rate=RATE)
    run.monitor = Monitor(behaviors(), protocol=protocol, every=50)
    with run.monitor.watch(run.model, run.optimizer, guard=guard):
        run.monitor._cadence.due = 99  # no visit before the end
        for ids, targets in lessons(5):
            run.step(ids, targets)
            run.monitor._cadence.due = 99
            for track in run.monitor.tracks.values():
                track.predicted.clear()
    assert [action.step for action in run.monitor.actions if action.applied] == [5]
    assert same(run.weights(), Run(None).weights())


BROKEN = {
    "kind": "threshold",
    "signal": "score",
    "side": "below",
    "value": 0.9,
    "level": "critical",
}


def test_a_second_behaviour_that_was_ill_from_the_start_is_left_out() -> None:
    def never(model: Any, probes: Any) -> torch.Tensor:
        return -(1 + model(probes[0])[:, -1, 0] ** 2)

    ill = Behavior("ill", behaviors()[0].probes, never)
    run = Run(guards.Rollback(every=3), rate=RATE)
    with pytest.warns(UserWarning, match="'ill' scores 0.00 before training"):
        run.monitor = Monitor([*behaviors(), ill], protocol=run.monitor.protocol, every=5)
        run.go(lessons(6))
    assert any(action.applied for action in run.monitor.actions)
    named = Run(guards.Rollback(["ill"]))
    named.monitor = Monitor([*behaviors(), ill], protocol=run.monitor.protocol, every=5)
    with pytest.raises(ConfigError, match="'ill' is under its floor before training"):
        named.go(lessons(1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"level": "red"}, "choose watch, warning, critical"),
        ({"every": 0}, "every=0; 1 or more"),
        ({"keep": 0}, "keep=0; 1 or more"),
        ({"cut": 0.0}, r"cut lies in \(0, 1\]"),
        ({"at_most": -1}, "at_most is 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        guards.Rollback(**options)


def test_a_schedule_that_is_not_given_is_refused() -> None:
    run = Run(guards.Rollback())
    torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.9)
    with pytest.raises(ConfigError, match=r"give Rollback\(schedule=\.\.\.\)"):
        run.go(lessons(1))


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = Run(guards.Rollback(folder=tmp_path / "file"))
    with pytest.raises(RiprapError, match="cannot write"):
        run.go(lessons(1))


@pytest.mark.parametrize("torn", [[3], [2, 3]], ids=["the newest", "all"])
def test_files_that_cannot_be_read_are_passed_over_and_said(
    torn: list[int], tmp_path: Path
) -> None:
    run = Run(guards.Rollback(every=1, folder=tmp_path), rate=0.1)
    weights = []
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for ids, targets in lessons(3):
            run.step(ids, targets)
            weights.append(run.weights())
        for step in torn:
            (tmp_path / f"rollback-{step}.safetensors").write_bytes(b"torn")
        run.step(*lessons(4)[3])
        (action,) = run.monitor.actions
    assert "checkpoint of step 3 could not be read" in action.detail
    assert action.applied is (torn == [3])
    assert same(run.weights(), weights[1]) is action.applied
    assert action.applied or "no healthy checkpoint to go back to" in action.detail


def test_files_that_a_state_names_stay_until_the_next_state(tmp_path: Path) -> None:
    """A process that dies is taken up from its last state, which must find its files."""

    def there() -> set[int]:
        return {int(file.stem.split("-")[1]) for file in tmp_path.iterdir()}

    ring = Ring(1, tmp_path, torch.device("cpu"))
    for step in (1, 2):
        ring.add(step, {"weights": torch.full((2,), float(step))})
    assert there() == {2}
    state = ring.state_dict()
    for step in (3, 4):
        ring.add(step, {"weights": torch.full((2,), float(step))})
    assert there() == {2, 4}
    again = Ring(1, tmp_path, torch.device("cpu"))
    again.load_state_dict(state)
    assert again.read(2)["weights"].tolist() == [2.0, 2.0]
    ring.state_dict()
    ring.add(5, {})
    assert there() == {4, 5}
