"""Check of predictions on the real corpus: joined by name, correlations, counts of breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import riprap
from experiments.onset import pace
from experiments.onset import preflight_check as check
from experiments.onset.trace import BehaviorTrace, Trace, load_corpus
from riprap.behaviors import Behavior
from tiny import PlainLM


def make_trace(name: str, fall: float, half: Any = "exploratory") -> Trace:
    """A run of 40 steps in which all margins fall from 1 by a constant rate."""
    steps = np.arange(0, 41, 4)
    margins = 1 - fall * steps[:, None] * np.linspace(0.9, 1.1, 10)
    own = BehaviorTrace(margins, np.zeros(10), np.zeros(40), np.ones(1))
    rates = np.ones(40)
    return Trace("real", name, half, {}, steps, rates, rates, np.array([0]), {"kept": own})


def make_prediction(name: str, loss: float, median: float | None) -> dict[str, Any]:
    steps = {"low": 5.0, "median": median, "high": None}
    own = dict.fromkeys(check.PREDICTED, loss) | {"means": dict.fromkeys(check.SCORES, 1.0)}
    own["all_rows"] = {"steps_to_break": steps, "probability": 0.9 if median else 0.1}
    return {"name": name, "behaviors": {"kept": own}, "summed_rate": 0.01, "rate": 1e-3} | {
        "warm_steps": 16
    }


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> check.Rows:
    monkeypatch.setattr(check, "REPLICATES", 100)
    falls = {"a": 0.05, "b": 0.03, "c": 0.01, "d": 0.002, "e": 0.001}
    for name, fall in falls.items():
        make_trace(name, fall).save(tmp_path)
    make_trace("hidden", 0.01, "confirmatory").save(tmp_path)
    predictions = [
        make_prediction("a", 2.0, 20.0),
        make_prediction("b", 1.5, 100.0),
        make_prediction("c", 0.4, None),
        make_prediction("d", 0.3, None),
        make_prediction("e", 0.5, None),
        make_prediction("hidden", 0.5, None),
    ]
    return check.join(predictions, load_corpus(tmp_path, "real", "exploratory"))


def test_runs_are_joined_by_name_and_the_other_half_is_not_read(rows: check.Rows) -> None:
    assert [row["run"] for row in rows] == ["a", "b", "c", "d", "e"]
    assert rows[0]["realized_loss"] == pytest.approx(2.0, rel=1e-2)
    assert rows[0]["break"] == 20 and rows[2]["break"] is None


def test_the_correlation_is_spearmans_and_its_interval_holds_it(rows: check.Rows) -> None:
    rho, low, high = check.correlation(rows, "predicted_loss")
    assert rho == pytest.approx(0.7)  # ranks 5 4 2 1 3 and 5 4 3 2 1
    assert low <= rho <= high
    text = check.table(rows)
    assert "| predicted loss | 0.70 (" in text and "5 behavior-runs of 5 runs" in text


def test_breaks_are_counted(rows: check.Rows) -> None:
    facts = check.break_facts(rows)
    assert facts["breaks that were predicted"].startswith("1.000 [")
    assert facts["of these, with a median within a factor of two"].startswith("0.500 [")
    assert facts["of these, with the break in the 80 % interval"].endswith("of 2")
    assert facts["predicted to break, and did not"] == "0.000 [0.000, 0.561] of 3"


def test_the_pace_of_a_straight_run_forecasts_its_end_and_its_break() -> None:
    """Margins that fall along a line: what the first of 40 steps say is the whole truth."""
    found = pace.cases([make_trace("a", 0.02), make_trace("b", 0.1)])
    assert [case.seen for case in found] == [False, True]
    rows = check.pace_rows(found)
    for row in rows:
        assert row["predicted_loss"] == pytest.approx(row["realized_loss"])
    assert rows[0]["low"] is not None and rows[0]["low"] < 40
    assert rows[1]["median"] == rows[1]["break"] == 12  # seen within the first steps


def test_a_prediction_is_stored_as_numbers() -> None:
    torch.manual_seed(0)
    model = PlainLM()
    batches = torch.randint(5, 40, (40, 4)).split(4)
    probes = torch.randint(5, 40, (12, 4))
    with torch.no_grad():
        answers = model(probes)[:, -1].argmax(-1)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(batch[:, :-1])[:, -1]
        return nn.functional.cross_entropy(logits, batch[:, -1], reduction="none")

    behaviors = [Behavior.next_token("kept", probes, answers)]
    found = riprap.preflight(model, batches, behaviors, loss=loss, steps=20, warm_steps=6)
    stored = check.facts_of(found, np.ones(20), 1e-4)
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    own = stored["behaviors"]["kept"]
    one = found.behaviors["kept"]
    left = 20 - (0.25 + 0.5 + 0.75 + 3)
    fall = one.start_margins.mean() - one.margins.mean() - left * one.pace
    assert own["predicted_loss"] == pytest.approx(fall / one.start_margins.mean())
    assert set(own["means"]) == set(check.SCORES)
