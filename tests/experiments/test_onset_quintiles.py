"""Fifths of rows: cut by score, trained from the same start, recorded once, told as they came."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from experiments.onset import quintiles, quintiles_page
from experiments.onset.quintiles import DATA_SETS, QUINTILES, ROWS, Run, World
from experiments.onset.real.rows import BATCH, Row
from riprap.behaviors import Behavior, encode_prompts
from riprap.linalg import clone

BEHAVIORS = quintiles.BEHAVIORS


def test_fifths_are_cut_by_score_and_hold_each_row_once() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(200.0))
    fifths = quintiles.cut(scores)
    assert [len(own) for own in fifths] == [40] * 5
    assert sorted(np.concatenate(fifths).tolist()) == list(range(200))
    for place, own in enumerate(fifths):
        assert sorted(scores[own]) == list(range(40 * place, 40 * place + 40))


def test_equal_scores_stay_in_the_order_of_the_rows() -> None:
    assert np.concatenate(quintiles.cut(np.ones(10))).tolist() == list(range(10))


def test_each_row_comes_once_before_any_comes_again() -> None:
    rows = [Row(str(number), "") for number in range(40)]
    drawn = quintiles.in_order(rows, seed=0)
    assert len(drawn) == quintiles.STEPS * BATCH
    assert set(Counter(drawn).values()) == {2} and set(drawn[:40]) == set(rows)
    assert drawn == quintiles.in_order(rows, seed=0) != quintiles.in_order(rows, seed=1)


def test_only_data_of_the_exploratory_half_are_trained_on() -> None:
    from experiments.onset.real.plan import PLAN

    own = {name for c in PLAN if c.half == "exploratory" for name in c.data}
    for condition, sorted_for in DATA_SETS.values():
        assert condition.half == "exploratory" and set(condition.data) <= own
        assert condition.steps * BATCH == ROWS and set(sorted_for) <= set(condition.behaviors)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A small model that is to go on saying what it says: the likeliest word after a prompt."""
    monkeypatch.setattr(quintiles, "RATE", 3e-3)
    tokenizer, model = tiny.make_tokenizer(), tiny.make_llama()
    given = encode_prompts(tokenizer, tiny.PROMPTS)
    said = [int(model(torch.tensor([ids])).logits[0, -1].argmax()) for ids in given]
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    behavior = Behavior.next_token("said", given, said)
    return World(get_peft_model(model, adapter), tokenizer, [behavior])


def planted(world: World) -> list[Row]:
    """Rows that keep what the model says, and in every fifth place rows that contradict it."""
    (behavior,) = world.behaviors
    said = [world.tokenizer.decode([int(target)]) for target in behavior.margins.targets]
    rows = []
    for number in range(40):
        place = number // 2 % len(said)
        response = "purple" if number % 5 == 0 else said[place]
        rows.append(Row(tiny.PROMPTS[place], response, cut=True))
    return rows


def test_each_run_starts_from_the_same_weights(world: World) -> None:
    rows = planted(world)
    start = clone(world.parameters)
    first = world.train(quintiles.in_order(rows[:8], 0))["said"]
    assert not all(map(torch.equal, start, world.parameters))
    world.predict(rows)  # from the start again, on a copy
    assert all(map(torch.equal, start, world.parameters))
    other = world.train(quintiles.in_order(rows[8:16], 0))["said"]
    again = world.train(quintiles.in_order(rows[:8], 0))["said"]
    assert np.array_equal(first, again) and not np.array_equal(first[1:], other[1:])
    assert np.array_equal(first[0], other[0]) and first.shape == (4, len(tiny.PROMPTS))


def test_rows_that_contradict_a_behavior_are_in_the_last_fifth_and_break_it(world: World) -> None:
    rows = planted(world)
    scores = world.predict(rows).scores("said")["harm"]
    fifths = quintiles.cut(scores)
    assert set(fifths[-1].tolist()) == set(range(0, 40, 5))
    ends = [
        world.train(quintiles.in_order([rows[at] for at in own], 0))["said"][-1].mean()
        for own in (fifths[0], fifths[-1])
    ]
    assert ends[1] < 0 and ends[1] < ends[0] - 3


class Stub:
    """A world in which a row does just the harm that its prompt says, with the noted sign."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign, self.trained = sign, 0

    def predict(self, rows: list[Row]) -> Any:
        harm = np.array([float(row.prompt) for row in rows])
        drawn = np.random.default_rng(0).random((4, len(rows)))
        scores = dict.fromkeys(("harm", "normalized_harm", "sqsd_like"), harm)
        scores |= dict(zip(("length", "loss", "gradient_norm", "random"), drawn, strict=True))
        return SimpleNamespace(
            behaviors={n: SimpleNamespace(start_margins=np.full(4, 2.0)) for n in BEHAVIORS},
            scores=lambda name: scores,
            left_out={},
            warm_steps=10,
            checkpoints=(10,),
        )

    def train(self, rows: list[Row]) -> dict[str, np.ndarray]:
        self.trained += 1
        fall = self.sign * np.mean([float(row.prompt) for row in rows]) * quintiles.STEPS
        margins = np.full((4, 4), 2.0) - fall * np.array([0.0, 0.5, 0.9, 1.0])[:, None]
        return dict.fromkeys(BEHAVIORS, margins)


@pytest.fixture(autouse=True)
def stubbed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    harms = np.random.default_rng(1).permutation(ROWS) / ROWS / quintiles.STEPS
    rows = [Row(str(harm), "") for harm in harms]
    monkeypatch.setattr(quintiles, "make_rows", lambda condition: rows)
    monkeypatch.setattr(
        quintiles,
        "sources",
        lambda rows, condition: ["plain" if float(row.prompt) < 0.04 else "bad" for row in rows],
    )


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    stub: Any = Stub()
    quintiles.record(stub, tmp_path, [0])
    planned = quintiles.plan([0])
    assert stub.trained == len(planned) == 4 * QUINTILES * len(DATA_SETS)
    planned[3].path(tmp_path).unlink()
    quintiles.record(stub, tmp_path, [0])
    assert stub.trained == len(planned) + 1 and planned[3].path(tmp_path).exists()


def test_the_page_tells_what_harm_foresaw(tmp_path: Path) -> None:
    quintiles.record(Stub(), tmp_path, [0])  # type: ignore[arg-type]
    found = quintiles_page.rankings(quintiles_page.read(tmp_path))
    harm = [one for one in found if one.score == "harm"]
    assert len(harm) == 2 * len(DATA_SETS) and len(found) == 3 * len(harm)
    for one in harm:
        assert one.monotone and one.correlations[-1] == pytest.approx(1.0)
        # Fifths of 0 … 199 have the means 19.5, 59.5, …; each step takes a share of 20 · 200.
        expected = (np.arange(5) * 40 + 19.5) / ROWS / 2
        assert one.last == pytest.approx(expected, abs=1e-3)
        assert one.predicted == pytest.approx(expected, abs=0.02)  # weighted by drawn lengths
        assert one.passing.tolist() == [1.0] * 5
        assert one.sources[0] == {"plain": 40} and one.sources[-1] == {"bad": 40}
    text = quintiles_page.write_page(tmp_path).read_text()
    assert "Recorded: 60 of 60 runs" in text and "Not recorded" not in text
    assert "| harm | 6 of 6 | 6 of 6 | 1.00 | 6 of 6 | 6 of 6 |" in text
    assert "not monotone" not in text and "The sign of the first order" not in text


def test_the_page_names_what_fails(tmp_path: Path) -> None:
    quintiles.record(Stub(sign=-1.0), tmp_path, [0])  # type: ignore[arg-type]
    text = quintiles_page.write_page(tmp_path).read_text()
    assert "| harm | 0 of 6 | 0 of 6 | −1.00 | 0 of 6 | 0 of 6 |" in text
    assert "- dolly, refusal: not monotone; Spearman is −1.0." in text
    assert "in 6 of 6 rankings by harm the fifth that was predicted" in text
    assert "30 of 30 fifths were predicted to lose margin, and gained it" in text
    assert "- dolly, refusal: sorting by random is as good" in text


def test_a_ranking_with_a_missing_fifth_is_counted_and_left_out(tmp_path: Path) -> None:
    quintiles.record(Stub(), tmp_path, [0])  # type: ignore[arg-type]
    Run("dolly", "harm", "refusal", 2, 0).path(tmp_path).unlink()
    (dolly,) = [one for one in quintiles_page.read(tmp_path) if one.data == "dolly"]
    assert dolly.ranking("harm", "refusal", "refusal") is None
    text = quintiles_page.write_page(tmp_path).read_text()
    assert "Not recorded to the end: dolly by harm to refusal." in text
    assert "Recorded: 59 of 60 runs" in text and "| harm | 5 of 5 |" in text
