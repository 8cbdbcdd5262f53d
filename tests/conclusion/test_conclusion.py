"""The first line says what to keep and what became of each behavior, and agrees with the record."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from loops import task, train
from riprap import Behavior, Monitor
from riprap._formatting import format_forecast
from riprap.conclusion import BehaviorOutcome, Conclusion, State, conclude
from riprap.conclusion._facts import RunFacts
from riprap.guards import Guard
from riprap.record import Reader, Writer
from riprap.types import Action, Alert, Forecast, Level, Reading, ReadingStatus

SOON = Forecast(8, 6, 11, 50)
PROBES = 100
Told = tuple[int, Level, int | None]  # step, level, step of the withdrawal


class Run:
    """A record as a monitor writes it, from scores and alerts alone."""

    def __init__(self, *names: str, floor: float = 0.9) -> None:
        self.writer = Writer()
        self.writer.write_meta(behaviors=[{"name": n, "floor": floor} for n in names])
        self.last = 0

    def scores(self, name: str, scores: dict[int, float]) -> Run:
        for step, score in scores.items():
            margins = np.where(np.arange(PROBES) < round(score * PROBES), 1.0, -1.0)
            self.writer.add_margins(step, name, margins)
            self.writer.add_readings([Reading(step, name, "score", score)])
            self.last = max(self.last, step)
        return self

    def alerts(self, name: str, *told: Told, detector: str = "forecast") -> Run:
        for step, level, withdrawn in told:
            self.writer.add_alert(Alert(step, name, level, detector, "why", (), SOON))
            if withdrawn is not None:
                alerts = [{"step": step, "level": str(level)}]
                facts = {"behavior": name, "detector": detector, "alerts": alerts}
                self.writer.add_event(withdrawn, "cleared", **facts)
        return self

    def event(self, step: int, kind: str, **facts: object) -> Run:
        self.writer.add_event(step, kind, **facts)
        return self

    def acted(self, *steps: int) -> Run:
        for step in steps:
            self.writer.add_action(Action(step, "auto_guard", "gradients", True, "replayed"))
        return self

    def end(self) -> Conclusion:
        self.writer.add_event(self.last, "ended", ended="2026-11-30T00:00:00")
        return conclude(self.writer)


def outcome(scores: dict[int, float], *told: Told, acted: tuple[int, ...] = ()) -> BehaviorOutcome:
    run = Run("refusal").scores("refusal", scores).alerts("refusal", *told).acted(*acted)
    return run.end().outcomes[0]


def test_kept() -> None:
    own = outcome({0: 1.0, 10: 0.93, 20: 0.97})
    assert (own.state, own.broke, own.lead, own.first, own.last) == (
        State.KEPT,
        None,
        None,
        1,
        0.97,
    )
    assert "at all 3 evaluations" in own.sentences
    assert "the lowest was 0.93, at step 10" in own.sentences


def test_a_score_at_the_floor_is_not_broken() -> None:
    assert outcome({0: 1.0, 10: 0.9}).state is State.KEPT


def test_broken_after_an_alert_that_stood() -> None:
    told = [(3, Level.WARNING, None), (4, Level.CRITICAL, None)]
    own = outcome({0: 1.0, 10: 0.95, 12: 0.84, 20: 0.2}, *told)
    assert (own.state, own.broke, own.lead) == (State.BROKEN, 12, 9)
    assert "At step 12 the score was 0.84, under the floor of 0.9" in own.sentences
    assert "at step 10, it was 0.95" in own.sentences
    assert "warning stood since step 3, 9 steps before the break; it expected" in own.sentences


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ((), "No alert was raised before it."),
        (((3, Level.WATCH, None),), "No warning stood when it broke"),
        (((3, Level.CRITICAL, 6),), "No warning stood when it broke"),
        (((12, Level.CRITICAL, None),), "No alert was raised before it."),
        (((15, Level.CRITICAL, None),), "No alert was raised before it."),
    ],
)
def test_a_break_is_announced_only_by_a_warning_that_stands_before_it(
    told: tuple[Told, ...], says: str
) -> None:
    own = outcome({0: 1.0, 11: 1.0, 12: 0.5, 20: 0.5}, *told)
    assert own.announced is None
    assert own.lead is None
    assert says in own.sentences


def test_recovered() -> None:
    own = outcome({0: 1.0, 10: 0.5, 20: 0.7, 30: 0.95, 40: 1.0})
    assert (own.state, own.broke) == (State.RECOVERED, 10)
    assert "lowest at step 10 (0.50), and from step 30 on" in own.sentences


def test_weakened_while_an_alert_stands_and_kept_once_it_is_withdrawn() -> None:
    scores = {0: 1.0, 10: 0.95, 20: 0.95}
    assert outcome(scores, (5, Level.WARNING, None)).state is State.WEAKENED
    assert outcome(scores, (5, Level.WATCH, None)).state is State.KEPT
    withdrawn = outcome(scores, (5, Level.CRITICAL, 15))
    assert withdrawn.state is State.KEPT
    assert "raised at step 5 and withdrawn at step 15; no break came" in withdrawn.sentences


def test_an_alert_at_which_a_guard_acted_may_be_averted_and_is_never_called_false() -> None:
    scores = {0: 1.0, 10: 0.95, 20: 0.95}
    own = outcome(scores, (5, Level.CRITICAL, 15), acted=(6, 8, 8))
    assert own.state is State.KEPT
    assert own.averted is not None
    assert own.averted.action == "auto_guard changed training at 2 steps"
    assert "In between auto_guard changed training at 2 steps (the last time: replayed)" in (
        own.sentences
    )
    assert "The threshold margin was 1.00 at the alert and 1.00 when it was" in own.sentences
    assert "may have prevented a break: only a run without the guard" in own.sentences
    assert "false" not in own.sentences and "verted" not in own.sentences
    assert outcome(scores, (5, Level.CRITICAL, 15), acted=(2, 17)).averted is None


def test_never_had_and_not_measurable() -> None:
    own = outcome({0: 0.5, 10: 0.95, 20: 0.4})
    assert (own.state, own.broke) == (State.NEVER_HAD, None)
    assert "already 0.50, under the floor of 0.9" in own.sentences
    assert outcome({}).state is State.UNMEASURED
    run = Run("refusal", "adding").scores("refusal", {0: 1.0, 10: 1.0}).scores("adding", {0: 1.0})
    run.alerts("adding", (10, Level.WARNING, None), detector="unmeasured")
    adding = run.end().outcomes[1]
    assert adding.state is State.UNMEASURED
    assert "After step 0 no score was measured. The reason: why." in adding.sentences


def test_a_score_is_never_rounded_across_its_floor() -> None:
    assert "the score was 0.899, under the floor" in outcome({0: 1.0, 5: 0.8991}).sentences


def test_the_line_names_the_checkpoint_to_keep_the_break_and_its_announcement() -> None:
    run = Run("refusal", "adding").scores("adding", dict.fromkeys((0, 320, 340, 500), 1.0))
    run.scores("refusal", {0: 1.0, 320: 0.95, 340: 0.5, 500: 0.1})
    run.alerts("refusal", (312, Level.WARNING, None), (330, Level.CRITICAL, None))
    for step in (100, 300, 330, 400):
        run.event(step, "checkpoint", path=f"out/checkpoint-{step + 1}")
    found = run.end()
    assert found.line == (
        "Keep checkpoint-301. Refusal broke at step 340; a warning stood since step 312."
    )  # 330 lies between a healthy evaluation and the break
    assert (found.keep, found.checkpoint, found.finished) == (320, "checkpoint-301", True)
    assert found.numbers["warning before refusal broke"] == "28 steps"
    assert found.numbers["behaviors above their floors"] == "1 of 2"
    assert found.advice == "Add a guard for refusal (`guard=guards.AutoGuard(...)`)."
    assert found.weights == (
        "At checkpoint-301 (step 300) every behavior was at or above its floor, no warning stood."
    )


def test_without_a_checkpoint_the_line_begins_with_what_happened() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0, 40: 0.5})
    assert run.end().line == (
        "Refusal broke at step 40; no warning stood before it. The last good evaluation was at "
        "step 20; no checkpoint is recorded."
    )
    late = run.event(40, "checkpoint", path="out/40").end().line
    assert late.endswith(
        "before it. The last good evaluation was at step 20; no checkpoint up to it is recorded."
    )
    at_once = Run("refusal").scores("refusal", {0: 1.0, 20: 0.5}).end()
    assert at_once.line.startswith("Keep the model as it was before training.")


def test_a_checkpoint_between_a_break_and_a_recovery_is_not_kept() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 0.5, 40: 1.0, 60: 0.4})
    run.event(10, "checkpoint", path="10").event(30, "checkpoint", path="30")
    assert run.end().checkpoint is None
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 0.5, 40: 1.0, 50: 1.0, 60: 0.4})
    run.event(45, "checkpoint").event(55, "checkpoint")
    assert run.end().line.startswith("Keep the checkpoint of step 45.")


def test_a_checkpoint_of_steps_that_were_taken_again_does_not_count() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    run.event(390, "checkpoint", path="390").event(10, "resumed")
    run.scores("refusal", {30: 1.0, 40: 1.0})
    found = run.end()
    assert found.line == "Keep the last weights, of step 40. The behavior was kept."
    assert found.weights.startswith("No checkpoint was recorded; none is needed")


def test_the_checkpoint_to_keep_is_told_with_its_alert_and_its_loss() -> None:
    run = Run("refusal", "adding").scores("refusal", {0: 1.0, 10: 0.95, 20: 0.5})
    run.scores("adding", dict.fromkeys((0, 10, 20), 1.0))
    run.alerts("refusal", (3, Level.WARNING, None), (4, Level.CRITICAL, None))
    run.alerts("adding", (3, Level.CRITICAL, 9))
    for step, loss in ((5, 8.0), (10, 6.74), (20, 1.85)):
        run.event(step, "training", loss=loss)
    assert run.event(10, "checkpoint", path="out/10").end().weights == (
        "At 10 (step 10) every behavior was at or above its floor, an alert of level critical "
        "about refusal stood, the training loss was 6.74 (1.85 at the end)."
    )


def test_a_checkpoint_that_was_deleted_is_not_named() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0, 40: 0.1})
    run.event(10, "checkpoint", path="a/checkpoint-10", kept=["checkpoint-10"])
    run.event(20, "checkpoint", path="a/checkpoint-20", kept=["checkpoint-10", "checkpoint-20"])
    run.event(40, "checkpoint", path="a/checkpoint-40", kept=["checkpoint-10", "checkpoint-40"])
    assert run.end().line.startswith("Keep checkpoint-10. Refusal broke")
    run.event(50, "checkpoint", path="a/checkpoint-50", kept=["checkpoint-40", "checkpoint-50"])
    line = run.end().line
    assert line.startswith("Refusal broke")
    assert line.endswith(
        "The last good evaluation was at step 20; no checkpoint up to it was kept."
    )


def test_a_checkpoint_that_was_overwritten_is_not_kept() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0, 40: 0.5})
    run.event(20, "checkpoint", path="runs/best").event(30, "checkpoint", path="runs/other")
    run.event(40, "checkpoint", path="runs/best/")
    found = run.end()
    assert found.checkpoint is None
    assert found.line.endswith(
        "The last good evaluation was at step 20; no checkpoint up to it was kept."
    )
    run.event(40, "checkpoint", path="runs/last").event(20, "resumed")  # what it holds is of 40
    assert run.event(20, "checkpoint", path="runs/20").end().checkpoint == "20"
    assert "best" not in run.end().line


def test_where_nothing_broke_the_limits_say_what_may_have_been_missed() -> None:
    found = Run("refusal").scores("refusal", {0: 1.0, 20: 0.97}).end()
    assert found.line == "Keep the last weights, of step 20. The behavior was kept."
    assert found.limits.startswith("Had refusal fallen to a true score of 0.8")
    assert "its 100 probes would have missed it 1 time in 5. It is about" in found.limits
    assert found.advice.startswith("Nothing needs a change.")
    lost = Run("refusal").scores("refusal", {0: 1.0, 20: 0.5}).end()
    assert "would have missed" not in lost.limits
    assert found.numbers["lowest score, refusal"] == "0.97 (floor 0.9)"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, ("guard=guards.AutoGuard(...)", "keep_passing=True")),
        ({"lr": 1}, ("guard=guards.AutoGuard(...)", "keep_passing=True")),
        (
            {"run_dir": "a", "training": {}, "data": {}},
            ("guard: {name: AutoGuard}", "keep_passing: true"),
        ),
    ],
)
def test_advice_is_written_as_the_run_was_configured(
    config: dict[str, object] | None, words: tuple[str, ...]
) -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0, 40: 0.5})
    run.writer.write_meta(notes={"config": config})
    run.alerts("refusal", (20, Level.WARNING, None))
    below = Run("refusal").scores("refusal", {0: 0.5, 20: 0.5})
    below.writer.write_meta(notes={"config": config})
    text = run.end().advice + below.end().advice
    assert all(word in text for word in words)


def test_advice_is_one_change_that_was_not_there_already() -> None:
    def lost() -> Run:
        run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0, 40: 0.5})
        return run.alerts("refusal", (20, Level.WARNING, None))

    ignored = lost().event(20, "stop_asked", reason="stop_on='warning'").end().advice
    assert ignored.startswith("Let the loop end where `monitor.should_stop` is True: at step 20")
    late = lost().event(40, "stop_asked", reason="stop_on='critical'").end().advice
    assert late.startswith("Add a guard for refusal")
    assert (
        lost().acted(30).end().advice == "auto_guard did not hold refusal: lower the learning rate."
    )
    run = lost().event(0, "guard", name="auto_guard")
    assert run.end().advice == (
        "Use a smaller `probe_every`: auto_guard was there, and never changed training."
    )
    run.writer.add_action(Action(21, "agem", "gradients", False, "no gradient"))
    assert run.end().advice == (
        "Mend auto_guard, which never changed training; its last action: no gradient."
    )
    none = Run("refusal").scores("refusal", {0: 0.0, 20: 0.0}).end().advice
    assert none == "Give refusal other probes: the model passed none of them."


def test_a_guard_that_never_acts_is_told_by_the_monitor(
    memory: Behavior, learned: nn.Module
) -> None:
    class Idle(Guard):
        name = "idle"

    monitor = Monitor([memory])
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.3)
    with monitor.watch(learned, optimizer, Idle()):
        train(learned, optimizer, task(2))
    with Reader(monitor.record) as reader:
        assert RunFacts.read(reader).idle_guard == "idle"


@pytest.mark.parametrize(("seconds", "shown"), [(2.5, "5.00 s"), (50.0, "93.0% of training")])
def test_the_share_of_the_monitor_is_told_where_it_matters(seconds: float, shown: str) -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    parts = {"start": seconds, "evaluations": seconds}
    found = run.event(20, "cost", share=0.93, seconds=parts).end()
    assert found.numbers["time of the monitor"] == shown


def test_a_run_that_an_alert_stopped_says_so() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    run.alerts("refusal", (20, Level.WARNING, None))
    assert run.end().line.startswith("The last weights, of step 20, pass, but an alert stands.")
    found = run.event(20, "stop_asked", reason="stop_on='warning'").end()
    assert found.line == (
        "Training was stopped at step 20; nothing is broken. Refusal is weakened: an alert of "
        "level warning stands since step 20."
    )
    assert found.numbers["forecast break of refusal"] == "at step 28 (26 to 31)"


def test_a_run_in_progress_keeps_nothing_yet() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 0.5})
    line = conclude(run.writer).line
    assert line.startswith("So far, to step 20: Refusal broke at step 20")
    assert "Keep" not in line


def test_training_that_does_nothing_is_said_first() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    run.alerts("", (20, Level.CRITICAL, None), detector="not_training")
    found = run.end()
    assert found.line == "Training changed nothing: why."
    assert found.advice.startswith("Run `riprap doctor`")
    assert [str(own.state) for own in found.outcomes] == ["not trained"]
    assert found.outcomes[0].sentences.startswith("Nothing was trained, so nothing could be lost")
    assert found.numbers["behaviors above their floors"] == "1 of 1"


def test_a_break_that_was_there_already_is_not_forecast() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    broken = Forecast(0.0, 0.0, 0.0, 50)
    run.writer.add_alert(Alert(20, "refusal", Level.CRITICAL, "forecast", "why", (), broken))
    found = run.end()
    text = " ".join([found.line, found.outcomes[0].sentences, *found.numbers.values()])
    assert "weakened" in found.line and "0 steps" not in text
    assert format_forecast(broken) == "broken already"
    assert format_forecast(Forecast(0.3, 0.0, 2.0, 50)) == "in 1 step (0 to 2)"


def test_a_part_that_does_not_train_hides_no_break() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 0.5})
    run.alerts("", (20, Level.WARNING, None), detector="not_training")
    line = run.end().line
    assert "Refusal broke at step 20" in line
    assert line.endswith("A part of the model does not train: why.")


def missing(run: Run, name: str, step: int) -> None:
    reading = Reading(step, name, "margin", state=ReadingStatus.ERROR, detail="no margins")
    run.writer.add_readings([reading])


def test_a_behavior_whose_last_evaluations_failed_is_not_kept() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    missing(run, "refusal", 40)
    found = run.end()
    assert found.outcomes[0].state is State.UNMEASURED
    assert found.line == "Refusal was not measured after step 20."


def test_margins_that_are_not_finite_are_a_break() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    missing(run, "refusal", 40)
    found = run.alerts("refusal", (40, Level.CRITICAL, None), detector="not_finite").end()
    own = found.outcomes[0]
    assert (own.state, own.broke) == (State.BROKEN, 40)
    assert "At step 40 the margins were not finite" in own.sentences
    assert found.keep == 20


def test_a_break_is_told_also_where_later_measurements_are_missing() -> None:
    run = Run("refusal", "adding").scores("refusal", {0: 1.0, 20: 0.5, 40: 0.4})
    run.scores("adding", dict.fromkeys((0, 20, 40, 60), 1.0))
    found = run.end()
    assert "Refusal broke at step 20, and was not measured after step 40." in found.line
    assert found.line.startswith("Keep the model as it was before training.")
    assert "a guard for refusal" in found.advice


def test_a_break_that_a_guard_undid_at_the_same_step_is_recovered() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 0.5})
    found = run.scores("refusal", {20: 1.0, 40: 1.0}).end()
    assert (found.outcomes[0].state, found.outcomes[0].broke) == (State.RECOVERED, 20)
    assert "lowest at step 20 (0.50), and from step 20 on" in found.outcomes[0].sentences


def test_without_any_measurement_nothing_is_concluded() -> None:
    assert Run("refusal").end().line == "Nothing can be concluded: no behavior was measured."


def loaded(scores: dict[int, float], **final: float) -> Conclusion:
    """A run that ends with other weights than those of its last step."""
    run = Run("refusal", "adding").scores("refusal", scores).scores("adding", {0: 1.0, 20: 1.0})
    for name, score in final.items():
        run.writer.add_readings([Reading(20, name, "final_score", score)])
    return run.end()


def test_weights_that_were_loaded_at_the_end_are_judged_by_their_own_scores() -> None:
    found = loaded({0: 1.0, 20: 0.5}, refusal=0.95, adding=1.0)
    assert found.line.startswith("Keep the weights that were loaded at the end. Refusal broke")
    assert [(own.state, own.last) for own in found.outcomes] == [
        (State.RECOVERED, 0.95),
        (State.KEPT, 1.0),
    ]
    found = loaded({0: 1.0, 20: 1.0}, refusal=1.0, adding=0.5)
    assert found.line.startswith("Do not keep the weights that were loaded at the end: adding is")
    assert "Adding is under its floor in these weights only." in found.line
    found = loaded({0: 0.2, 20: 0.2}, refusal=0.2, adding=1.0)
    assert found.line.startswith("Keep the weights that were loaded at the end. Refusal was under")
    found = loaded({0: 1.0, 20: 1.0}, adding=1.0)
    assert found.line == "Refusal was not measured in these weights."


def test_three_numbers_and_the_training_loss_among_them() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    run.event(5, "training", loss=2.5).event(20, "training", loss=1.25)
    found = run.end()
    assert found.numbers["training loss"] == "2.50 → 1.25"
    assert len(found.numbers) == 3


def test_a_loss_that_is_not_finite_is_told() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0})
    run.event(5, "training", loss=2.5).event(6, "training", loss=float("inf"))
    run.event(10, "training", loss=1.25)
    assert run.end().numbers["training loss"] == "2.50 → 1.25"
    run.event(15, "training", loss=float("nan")).event(20, "training", loss=float("inf"))
    assert run.end().numbers["training loss"] == "2.50 → not finite since step 15"


def test_many_changes_are_counted_and_the_worst_come_first() -> None:
    names = [f"skill {i}" for i in range(6)]
    run = Run(*names)
    for name in names[:5]:
        run.scores(name, {0: 0.5, 20: 0.5})
    run.scores(names[5], {0: 1.0, 20: 0.5})
    line = run.end().line
    assert line.index("skill 5 broke") < line.index("skill 0 was under its floor")
    assert line.endswith("3 more behaviors changed.")


def test_hostile_names_are_escaped_and_plain_values_are_json() -> None:
    import json

    run = Run("bad\x1b[31m\nname").scores("bad\x1b[31m\nname", {0: 1.0, 20: 0.5})
    found = run.end()
    assert "\x1b" not in found.line
    assert "\n" not in found.line
    assert json.loads(json.dumps(found.to_dict()))["behaviors"]


def test_who_ended_a_run_before_its_plan_is_told() -> None:
    run = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0}).event(0, "plan", steps=150)
    found = run.end()
    assert found.ended_early
    assert found.weights.startswith(
        "The run ended at step 20 of 150 planned; nothing that was recorded asked for it."
    )
    stopped = run.event(20, "stop_asked", reason="stop_on='warning': step 20, warning").end()
    assert "of 150 planned: training was asked to stop (stop_on='warning')." in stopped.weights
    whole = Run("refusal").scores("refusal", {0: 1.0, 20: 1.0}).event(0, "plan", steps=20).end()
    assert not whole.ended_early and "planned" not in whole.weights


def test_further_alerts_are_counted() -> None:
    scores = {0: 1.0, 10: 0.95, 30: 0.95}
    told = [(3, Level.CRITICAL, 18), (19, Level.WARNING, 22), (24, Level.WATCH, None)]
    text = outcome(scores, *told).sentences
    assert text.endswith("And 1 more alert of level warning or above: step 19 to 22.")
    guarded = outcome(scores, *told, acted=(6,)).sentences
    assert "step 19 to 22" in guarded and "goes by the pace" not in guarded  # it did not fall
