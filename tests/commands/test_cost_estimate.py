"""The dry run measures the cost of a run, refuses what the run would, and leaves no files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer
from typer.testing import CliRunner

from launching import config, tree, write_config
from riprap.cli._app import app
from riprap.commands.watch import _cost_estimate as cost_estimate
from riprap.commands.watch import prepare
from riprap.monitor import Cost, Monitor

pytestmark = pytest.mark.filterwarnings("ignore")
CHEAP = Cost(
    step_seconds=1.0,
    hook_seconds=0.01,
    forward_seconds=0.1,
    refresh_seconds=0.3,
    start_seconds=0.5,
    memory_bytes=8_000_000,
)


def watch(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["watch", *map(str, arguments)])


def test_it_measures_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    result = watch(file, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    seconds = found["seconds"]
    assert all(math.isfinite(value) for value in seconds.values())
    assert all(seconds[part] > 0 for part in ("step", "forward", "gradients", "start"))
    assert found["memory_megabytes"] > 0
    assert [row["probe_every"] for row in found["cadences"]] == [3, 6, 15]
    assert found["ratio"] == found["cadences"][0]["run"] > 1
    assert tree(tmp_path) == before


def test_what_training_breaks_does_not_come_into_the_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a near break would cause additional probe evaluations."""
    rows = {"path": str(tmp_path / "rows.jsonl"), "response_prefix": "sorry "}
    breaking = config(tmp_path, training={"learning_rate": 0.03}, data=rows)
    monitors: list[Monitor] = []
    measured = cost_estimate.measure_cost

    def noted(monitor: Monitor, *rest: Any, **named: Any) -> Any:
        monitors.append(monitor)
        return measured(monitor, *rest, **named)

    monkeypatch.setattr(cost_estimate, "measure_cost", noted)
    cost_estimate.estimate_cost(breaking, quiet=True)
    assert monitors[0].broken() == {"never sorry": None}
    monkeypatch.setattr(cost_estimate, "LR_FACTOR", 1.0)
    cost_estimate.estimate_cost(breaking, quiet=True)
    assert monitors[1].broken()["never sorry"] is not None


def test_people_get_a_table(tmp_path: Path) -> None:
    result = watch(write_config(tmp_path), "--dry-run")
    assert result.exit_code == 0, result.output
    for text in ("training step without a monitor", "over 9 steps", "once calm", "MB"):
        assert text in result.output


def test_a_step_is_all_of_its_batches_and_that_of_the_trainer(tmp_path: Path) -> None:
    """The first step of the dry run moves the weights as the first step of the run does."""
    first = config(
        tmp_path, training={"max_steps": 1, "gradient_accumulation_steps": 4, "save_steps": 1}
    )
    run = prepare(first)
    run.train()
    trained = dict(run.model.named_parameters())
    again = prepare(first.model_copy(update={"run_dir": tmp_path / "again"}))
    model, _, step = cost_estimate.make_step_fn(again.make_trainer())
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    step()
    moved = dict(again.model.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in moved.items())
    assert any(not torch.equal(p, start[name]) for name, p in model.named_parameters())


def test_steps_with_and_without_hooks_see_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the lengths of the rows would pass for the cost of the hooks."""
    seen: dict[bool, list[int]] = {True: [], False: []}
    original = SFTTrainer.training_step

    def note(self: SFTTrainer, model: Any, inputs: Any, *rest: Any) -> Any:
        (monitor,) = monitors
        hooked = monitor.watching and bool(self.optimizer.optimizer._optimizer_step_post_hooks)
        if monitor.watching:
            seen[hooked].append(int(inputs["input_ids"].sum()))
        return original(self, model, inputs, *rest)

    monitors: list[Monitor] = []
    made = Monitor.__init__
    monkeypatch.setattr(
        Monitor, "__init__", lambda self, *a, **k: monitors.append(self) or made(self, *a, **k)
    )
    monkeypatch.setattr(SFTTrainer, "training_step", note)
    cost_estimate.estimate_cost(config(tmp_path), quiet=True)
    assert len(seen[True]) == 20  # two rounds or more of two steps of two batches
    assert sorted(seen[True]) == sorted(seen[False])
    assert len(set(seen[True])) > 2


def test_what_takes_long_is_measured_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    original = SFTTrainer.training_step

    def note(self: SFTTrainer, *rest: Any) -> Any:
        taken.append(1)
        return original(self, *rest)

    monkeypatch.setattr(SFTTrainer, "training_step", note)
    monkeypatch.setattr(cost_estimate, "MAX_SECONDS", 0.0)
    assert cost_estimate.estimate_cost(config(tmp_path), quiet=True)["ratio"] > 1
    assert len(taken) == 5 * 2  # one round, and one step before it, of two batches each


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_layer": "model.nowhere"},
        {"policy": "nobody"},
        {"data": {"path": "missing.jsonl"}},
        {"run_dir": "{folder}/watch.yaml/run"},
    ],
)
def test_what_the_run_is_refused_for_the_dry_run_is_refused_for(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    if "run_dir" in changes:
        changes = {"run_dir": changes["run_dir"].format(folder=tmp_path)}
    file = write_config(tmp_path, **changes)
    before = tree(tmp_path)
    dry_result = watch(file, "--dry-run")
    assert tree(tmp_path) == before
    result = watch(file)
    assert dry_result.exit_code == result.exit_code == 1
    said = [r.stderr[r.stderr.index("error: ") :] for r in (dry_result, result)]
    assert said[0] == said[1]


def test_a_record_that_is_in_the_way_is_refused(tmp_path: Path) -> None:
    file = write_config(tmp_path, training={"max_steps": 1})
    assert watch(file).exit_code != 1
    before = tree(tmp_path)
    result = watch(file, "--dry-run")
    assert result.exit_code == 1
    assert "already holds a record" in result.stderr
    assert tree(tmp_path) == before


def test_dry_run_and_resume_exclude_each_other(tmp_path: Path) -> None:
    result = watch(write_config(tmp_path), "--dry-run", "--resume")
    assert result.exit_code == 1
    assert "remove --resume" in result.stderr


def test_rarer_evaluations_cost_less() -> None:
    found = cost_estimate.summarize_cost(CHEAP, probe_every=2, steps=100)
    runs, calm = ([row[key] for row in found["cadences"]] for key in ("run", "calm"))
    assert runs == sorted(runs, reverse=True)
    assert calm == sorted(calm, reverse=True)
    assert len(set(runs)) == len(set(calm)) == 3
    assert found["memory_megabytes"] == 8.0


def test_no_advice_where_none_is_needed() -> None:
    assert cost_estimate.advice(CHEAP, probe_every=20, steps=500) is None


def test_advice_is_true() -> None:
    """Each remedy that is named brings the run within the limit."""
    often = Cost(
        step_seconds=1.0,
        hook_seconds=0.01,
        forward_seconds=0.5,
        refresh_seconds=1.5,
        start_seconds=0.5,
        memory_bytes=0,
    )
    said = cost_estimate.advice(often, probe_every=2, steps=500)
    assert said is not None
    rarer = int(said.split("`probe_every: ")[1].split("`")[0])
    assert often.run_ratio(rarer, 500) <= cost_estimate.MAX_RATIO < often.run_ratio(2, 500)

    slow = Cost(
        step_seconds=1.0,
        hook_seconds=0.0,
        forward_seconds=0.5,
        refresh_seconds=1.5,
        start_seconds=20.0,
        memory_bytes=0,
    )
    said = cost_estimate.advice(slow, probe_every=50, steps=60)
    assert said is not None
    longer = int(said.split("a run of ")[1].split(" steps")[0])
    assert slow.run_ratio(50, longer) <= cost_estimate.MAX_RATIO < slow.run_ratio(50, 60)
    share = float(said.split("about ")[1].split("%")[0]) / 100
    fewer = Cost(1.0, 0.0, 0.5 * share, 1.5 * share, 20 * share, 0)
    assert fewer.run_ratio(50, 60) == pytest.approx(cost_estimate.MAX_RATIO, abs=0.005)

    hooks = Cost(
        step_seconds=1.0,
        hook_seconds=0.3,
        forward_seconds=0.0,
        refresh_seconds=0.0,
        start_seconds=0.0,
        memory_bytes=0,
    )
    said = cost_estimate.advice(hooks, probe_every=20, steps=500)
    assert said is not None
    assert "the hooks alone add 30% to each step" in said
