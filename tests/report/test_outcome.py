"""The sentences about each behavior agree with the record; leads are counted from the break."""

from __future__ import annotations

import math

import pytest

from riprap.record import Writer
from riprap.report._outcome import BehaviorOutcome, Outcome, assess, headline
from riprap.report._run import load_run
from riprap.types import Alert, Forecast, Level, Reading

SOON = Forecast(8, 6, 11, 50)


def judged(
    scores: dict[int, float], *alerts: tuple[int, Level, Forecast | None]
) -> BehaviorOutcome:
    return assess(*scene(scores, *alerts))


def scene(scores: dict[int, float], *alerts: tuple[int, Level, Forecast | None]):
    writer = Writer()
    writer.write_meta(behaviors=[{"name": "refusal", "floor": 0.9}])
    for step, score in scores.items():
        writer.add_readings([Reading(step, "refusal", "score", score)])
    for step, level, forecast in alerts:
        writer.add_alert(Alert(step, "refusal", level, "forecast", "", (), forecast))
    run = load_run(writer)
    return run, run.behaviors[0]


def test_kept() -> None:
    verdict = judged({0: 1.0, 10: 0.93, 20: 0.97})
    assert (verdict.outcome, verdict.broke, verdict.lead) == (Outcome.KEPT, None, None)
    assert "at all 3 evaluations" in verdict.sentences
    assert "the lowest was 0.93, at step 10" in verdict.sentences


def test_a_score_at_the_floor_is_not_broken() -> None:
    assert judged({0: 1.0, 10: 0.9}).outcome is Outcome.KEPT


def test_broken_after_an_early_alert() -> None:
    alerts = [(3, Level.WARNING, SOON), (4, Level.CRITICAL, SOON), (9, Level.CRITICAL, SOON)]
    verdict = judged({0: 1.0, 10: 0.95, 12: 0.84, 20: 0.2}, *alerts)
    assert (verdict.outcome, verdict.broke, verdict.lead) == (Outcome.BROKE, 12, 8)
    assert "At step 12 the score was 0.84, under the floor of 0.9" in verdict.sentences
    assert "at the evaluation before, at step 10, it was not" in verdict.sentences
    assert "at step 4, 8 steps before the break" in verdict.sentences
    assert "in 8 steps (6 to 11)" in verdict.sentences
    assert "false alarm" not in verdict.sentences


def test_broken_without_or_before_an_alert() -> None:
    assert "No critical alert" in judged({0: 1, 12: 0.5}, (3, Level.WARNING, SOON)).sentences
    late = judged({0: 1, 12: 0.5}, (60, Level.CRITICAL, SOON))
    assert late.lead == -48
    assert "48 steps too late" in late.sentences
    together = judged({0: 1, 12: 0.5}, (12, Level.CRITICAL, Forecast(0, 0, 0, 50)))
    assert together.lead == 0
    assert "at the break, not before it" in together.sentences


def test_a_break_past_the_horizon_makes_its_alert_false() -> None:
    verdict = judged({0: 1, 99: 1, 100: 0.5}, (4, Level.CRITICAL, SOON))
    assert verdict.lead == 96
    assert "counts as a false alarm" in verdict.sentences


@pytest.mark.parametrize(("last", "fate"), [(53, Outcome.CRITICAL), (54, Outcome.KEPT)])
def test_a_critical_alert_stands_until_its_horizon_is_over(last: int, fate: Outcome) -> None:
    verdict = judged({0: 1.0, last: 1.0}, (4, Level.CRITICAL, SOON))
    assert verdict.outcome is fate
    assert ("a false alarm" in verdict.sentences) == (fate is Outcome.KEPT)


def test_nothing_to_lose() -> None:
    verdict = judged({0: 0.5, 10: 0.95, 20: 0.4})
    assert (verdict.outcome, verdict.broke) == (Outcome.UNDER, None)
    assert "already 0.50, under the floor of 0.9: there was nothing to lose" in verdict.sentences


def test_nothing_measured() -> None:
    assert judged({}).outcome is Outcome.UNKNOWN


def test_a_score_is_never_rounded_across_its_floor() -> None:
    assert "the score was 0.899, under the floor" in judged({0: 1.0, 5: 0.8991}).sentences


def test_the_headline_names_break_first_alerts_and_lead() -> None:
    open_ended = Forecast(math.inf, 20, math.inf, 50)
    run, refusal = scene(
        {0: 1.0, 1200: 0.5},
        (1100, Level.WATCH, open_ended),
        (1150, Level.CRITICAL, SOON),
        (1160, Level.WATCH, open_ended),
    )
    text = headline(run, assess(run, refusal))
    assert text == "broke at step 1,200 · first watch at 1,100 · first critical at 1,150 · lead 50"
