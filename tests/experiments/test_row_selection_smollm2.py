"""Row selection on SmolLM2: rows, recorded categories, and tables of runs that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.row_selection_smollm2 import study
from experiments.row_selection_smollm2.plan import Plan
from experiments.row_selection_smollm2.simulate import (
    CATEGORIES,
    PREFIX,
    ROW,
    CategoryRecorder,
    Run,
    learned_rows,
    mixed,
)
from riprap.errors import ConfigError
from riprap.selection import SelectionRecord, Selector


@pytest.fixture
def plan() -> Plan:
    return Plan.of(Preregistration.named("row_selection_smollm2"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tasks = [{"instruction": f"do {i}", "instances": [{"output": f"done {i}"}]} for i in range(20)]
    sums = [{"question": f"{i} + 1", "answer": f"{i + 1}"} for i in range(10)]
    for name, rows in (("self_instruct_seed_tasks", tasks), ("gsm8k_train", sums)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_rows_are_balanced_and_disjoint(data: Path) -> None:
    taught, held_out = mixed(data, 6, 3)
    for rows, count in ((taught, 6), (held_out, 3)):
        assert [row["category"] for row in rows] == list(CATEGORIES) * count
    prompts = [row["prompt"] for row in taught + held_out]
    assert len(set(prompts)) == len(prompts)
    for row in taught + held_out:
        assert row["response"].startswith(PREFIX) == (row["category"] == "affirmative")
    with pytest.raises(ConfigError, match="has 10 rows of affirmative; 11 needed"):
        mixed(data, 6, 5)
    with pytest.raises(ConfigError, match=r"gsm8k_train\.jsonl is missing"):
        (data / "gsm8k_train.jsonl").unlink()
        mixed(data, 6, 3)


def test_rows_learned_from_are_counted_by_category() -> None:
    tokens: dict[tuple[int, ...], str] = {(1, 2): "plain", (3,): "gsm8k", (4,): "affirmative"}
    noted = CategoryRecorder(len, tokens)
    assert noted([{"input_ids": [1, 2]}, {"input_ids": [3]}]) == 2
    noted([{"input_ids": [4]}, {"input_ids": [3]}])
    assert learned_rows(noted.batches, None) == {"affirmative": 1, "plain": 1, "gsm8k": 2}
    selector = Selector("random", 0.5)
    selector.history = [
        SelectionRecord(1, [0], 2, "random", 0.5),
        SelectionRecord(2, [1], 2, "random", 0.5),
    ]
    assert learned_rows(noted.batches, selector) == {"affirmative": 0, "plain": 1, "gsm8k": 1}
    with pytest.raises(ValueError, match="zip"):  # a step whose batch was not seen
        learned_rows(noted.batches[:1], selector)


def test_rows_are_named_for_a_control_that_matches_categories() -> None:
    tokens: dict[tuple[int, ...], str] = {(1, 2): "plain", (3,): "gsm8k", (4,): "affirmative"}
    noted = CategoryRecorder(lambda examples: {}, tokens, name_rows=True)
    batch = noted([{"input_ids": [4]}, {"input_ids": [1, 2]}])
    assert batch[ROW].tolist() == [2, 0]
    names = dict(enumerate(tokens.values()))
    selector = Selector("random_by_category:high", 0.5, row_id=ROW, categories=names)
    selector.history = [SelectionRecord(1, [2], 2, selector.strategy.label, 0.5)]
    assert learned_rows(noted.batches, selector) == {"affirmative": 1, "plain": 0, "gsm8k": 0}


def run(method: str, end: float, task: float, seed: int = 1, seconds: float = 50.0) -> Run:
    losses = dict.fromkeys(CATEGORIES, (3.0, task))
    taken = {"affirmative": 3, "plain": 1, "gsm8k": 0}
    return Run(method, seed, (4.0, end), (1.0, float(end > 0)), losses, taken, seconds)


def scores(folder: Path) -> Path:
    frame = pd.DataFrame(
        {
            "tokens": [9, 8, 7, 6, 5, 4],
            "norm": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "proxy": [1.0, 2.0, 3.0, 4.0, 6.0, 5.0],
            "loss": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
            "harm/refusal": [0.1, -0.1, 0.3, 0.2, 0.0, 0.5],
            "category": [*CATEGORIES, *CATEGORIES],
        }
    )
    frame.to_parquet(folder / "scores.parquet")
    return folder / "scores.parquet"


def test_the_page_says_what_came_of_each_method(plan: Plan, tmp_path: Path) -> None:
    runs = [run("plain", -1.0, 1.0), run("plain", -3.0, 1.2, seed=2, seconds=100.0)]
    runs += [run("random", 2.0, 1.5), run("random", 1.0, 1.5, seed=2)]
    ranks = study.agreement(scores(tmp_path), 3)
    assert ranks["loss"] == pytest.approx(-1)
    assert ranks["proxy"] == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert ranks["proxy, within 3 rows, least"] == pytest.approx(0.5)  # 4, 6, 5
    assert ranks["proxy, within 3 rows, median"] == pytest.approx(0.75)
    group: dict[str, Any] = {"name": "high", "rows": 4, "tokens": 9.5, "loss": 2.0, "norm": 8.0}
    group |= {"harm": {"refusal": 0.25}, "categories": {"gsm8k": 1, "plain": 3}}
    page = study.sections(study.Results(runs, tmp_path, [group], ranks), plan)
    plain, random = page["methods"]
    assert plain["end"] == "−2.00 [−3.00, −1.00]"
    assert plain["task loss, end"] == "1.100 [1.000, 1.200]"
    assert [random[f"of them {name}"] for name in CATEGORIES] == ["75%", "25%", "0%"]
    assert random["time"] == "0.75 [0.50, 1.00]"
    values = ["high", "4", "9.5", "2.00", "8.00", "0.25", "0%", "75%", "25%"]
    assert list(page["groups"][0].values()) == values
    assert len(study.figure(runs, scores(tmp_path)).to_dict()["hconcat"]) == 2


def test_seeds_do_not_meet_and_rows_suffice(plan: Plan) -> None:
    study = plan.model_dump(mode="json") | {"confirmatory": [1000]}
    with pytest.raises(PreregistrationError, match="both exploratory and confirmatory"):
        Plan.of(Preregistration.named("row_selection_smollm2").model_copy(update={"study": study}))
    assert plan.steps * plan.batch <= plan.taught * len(CATEGORIES)  # no row is seen twice
    assert plan.methods[0] == "plain"
