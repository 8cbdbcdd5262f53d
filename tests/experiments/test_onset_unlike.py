"""Recorded runs say what the model did, and null runs break as they were built to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments.onset.nulls import N_PROBES, PROCESSES, STARTS, STEPS, null_trace, null_traces
from experiments.onset.trace import Trace
from experiments.onset.unlike import record as recording
from experiments.onset.unlike.base import UNASKED, Rows, World, margins
from experiments.onset.unlike.page import fates, page
from experiments.onset.unlike.plan import CONDITIONS, WORLDS, Run, runs
from experiments.onset.unlike.record import flat, passing_probes, record, record_once
from experiments.onset.unlike.updates import OPTIMIZERS, SCHEDULES, factors, optimizers

RUN = Run("digits", "late", 0, 0, ("old", "rotated"), 6, "adamw", "linear", 0.3, 0.25, 12)


@pytest.fixture(scope="module")
def start() -> dict[str, Tensor]:
    """The digits' model after a short first training, which is enough to pass most probes."""
    torch.manual_seed(0)
    world = WORLDS["digits"]
    model, generator = world.build(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        recording._step(model, [optimizer], world.old(generator, 96))
    return model.state_dict()


def model_of(start: dict[str, Tensor]) -> nn.Module:
    model = WORLDS["digits"].build()
    model.load_state_dict(start)
    return model


def margin_by_hand(logits: Tensor, targets: Tensor) -> float:
    """The lowest over asked positions of right minus best other, with plain Python numbers."""
    found = []
    for row, right in zip(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), strict=True):
        values, answer = row.tolist(), int(right)
        if answer != UNASKED:
            found.append(values[answer] - max(values[:answer] + values[answer + 1 :]))
    return min(found)


@pytest.mark.parametrize("name", WORLDS)
def test_margins_are_right_minus_best_other(name: str) -> None:
    world = WORLDS[name]
    torch.manual_seed(1)
    model = world.build()
    for draw in {**world.probes, **world.related, **world.new}.values():
        rows = draw(torch.Generator().manual_seed(2), 7)
        logits = model(rows.inputs).detach()
        by_hand = [margin_by_hand(*own) for own in zip(logits, rows.targets, strict=True)]
        np.testing.assert_allclose(margins(logits, rows.targets), by_hand, rtol=1e-5)
        passed = [
            bool((own.argmax(-1) == right)[right != UNASKED].all())
            for own, right in zip(logits, rows.targets, strict=True)
        ]
        assert [bool(margin > 0) for margin in by_hand] == passed


def test_a_run_records_the_margins_and_the_interference_of_its_steps(
    start: dict[str, Tensor],
) -> None:
    """The run is repeated by hand, step by step, and each number is computed another way."""
    model = model_of(start)
    trace = record(RUN, model)
    assert trace.n_steps == RUN.steps and list(trace.refreshed) == [0, 8]
    world, again = WORLDS["digits"], model_of(start)
    probes = passing_probes(world, again, RUN.model)
    seed = int(np.random.SeedSequence(RUN.seed).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(again.parameters())
    rates = RUN.rate * trace.rates
    for step in range(RUN.steps):
        if step in (0, 8):
            protected = {name: gradient_by_loop(again, own) for name, own in probes.items()}
        before = [own.detach().clone() for own in again.parameters()]
        rows = recording._batch(world, RUN, step, generator)
        optimizer.param_groups[0]["lr"] = float(rates[step])
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(again(rows.inputs), rows.targets)
        loss.backward()
        optimizer.step()
        assert trace.losses[step] == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, own in trace.behaviors.items():
            expected = sum(
                float((h.double() * (now.detach() - then).double()).sum())
                for h, now, then in zip(protected[name], again.parameters(), before, strict=True)
            )
            assert own.interference[step] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            logits = again(probes[name].inputs).detach()
            own_margins = [
                margin_by_hand(*row) for row in zip(logits, probes[name].targets, strict=True)
            ]
            np.testing.assert_allclose(own.margins[step + 1], own_margins, rtol=1e-4, atol=1e-4)
        if step == 0:
            for name, own in trace.behaviors.items():
                norm = sum(float((h.double() ** 2).sum()) for h in protected[name]) ** 0.5
                assert own.gradient_norms[0] == pytest.approx(norm, rel=1e-5)
    np.testing.assert_allclose(flat(model), flat(again), rtol=1e-5, atol=1e-6)
    for own in trace.behaviors.values():
        assert (own.margins[0] > 0).all() and len(own.groups) == own.margins.shape[1]


def gradient_by_loop(model: nn.Module, probes: Rows) -> list[Tensor]:
    """The gradient of the mean margin, from one backward pass a probe."""
    total = [torch.zeros_like(own) for own in model.parameters()]
    for row, right in zip(probes.inputs, probes.targets, strict=True):
        logits = model(row[None])[0]
        others = torch.cat([logits[:right], logits[right + 1 :]])
        parts = torch.autograd.grad(logits[right] - others.max(), list(model.parameters()))
        total = [sum_ + part / len(probes) for sum_, part in zip(total, parts, strict=True)]
    return total


def test_interference_predicts_the_change_of_the_mean_margin(start: dict[str, Tensor]) -> None:
    run = replace(RUN, optimizer="sgd", share=0.001, replay=0.0, steps=8, schedule="constant")
    trace = record(run, model_of(start))
    for own in trace.behaviors.values():
        np.testing.assert_allclose(
            own.interference, np.diff(own.margins.mean(1)), rtol=0.1, atol=2e-5
        )


def test_the_same_settings_give_the_same_trace(start: dict[str, Tensor]) -> None:
    first, again = (record(RUN, model_of(start)) for _ in range(2))
    other = record(replace(RUN, number=1), model_of(start))
    for name, own in first.behaviors.items():
        np.testing.assert_array_equal(own.margins, again.behaviors[name].margins)
        np.testing.assert_array_equal(own.interference, again.behaviors[name].interference)
        assert (own.margins[1:] != other.behaviors[name].margins[1:]).any()


def test_a_late_run_changes_its_task_in_time_and_replays(start: dict[str, Tensor]) -> None:
    world, generator = WORLDS["digits"], torch.Generator().manual_seed(0)
    run = replace(RUN, tasks=("low_again", "eight_and_nine"), replay=0.0)
    before, after = (recording._batch(world, run, step, generator) for step in (5, 6))
    assert set(before.targets.tolist()) == {0, 1, 2, 3} and set(after.targets.tolist()) == {8, 9}
    mixed = recording._batch(world, replace(run, replay=0.25), 6, generator)
    assert len(mixed) == world.batch and int((mixed.targets < 8).sum()) == world.batch // 4


def test_a_stored_run_is_not_recorded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = replace(WORLDS["digits"], pretraining=(250, 96, 3e-3), n_probes=dict.fromkeys(
        WORLDS["digits"].behaviors, 24))  # fmt: skip
    monkeypatch.setitem(WORLDS, "digits", world)
    run = replace(RUN, steps=2)
    path = record_once(run, tmp_path)
    trace, written = Trace.load(path), path.stat().st_mtime_ns
    assert trace.corpus == "unlike" and trace.half == "exploratory" and trace.name == run.name
    monkeypatch.setattr(recording, "record", None)
    assert record_once(run, tmp_path) == path and path.stat().st_mtime_ns == written


def test_probes_must_pass(start: dict[str, Tensor]) -> None:
    world: World = WORLDS["digits"]
    for own in passing_probes(world, model_of(start), 0).values():
        assert (model_of(start)(own.inputs).argmax(1) == own.targets).all()
        assert len({tuple(row) for row in own.inputs.tolist()}) == len(own)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="are needed: train it longer"):
        passing_probes(world, world.build(), 0)


def test_probes_of_digits_are_images_that_no_task_trains_on() -> None:
    world, generator = WORLDS["digits"], torch.Generator().manual_seed(0)
    trained = {tuple(row) for row in world.behaviors["low"](generator, 10_000).inputs.tolist()}
    held_out = {tuple(row) for row in world.probes["low"](generator, 10_000).inputs.tolist()}
    assert len(trained) > 300 and len(held_out) > 300 and not trained & held_out


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_trains_every_parameter(name: str) -> None:
    for world in WORLDS.values():
        torch.manual_seed(0)
        model = world.build()
        updaters = optimizers(name, model, world.rates[name])
        groups = [group for updater in updaters for group in updater.param_groups]
        trained = [id(own) for group in groups for own in group["params"]]
        assert sorted(trained) == sorted(id(own) for own in model.parameters())
        before = [own.detach().clone() for own in model.parameters()]
        rows = world.old(torch.Generator().manual_seed(0), 64)
        losses = [recording._step(model, updaters, rows) for _ in range(3)]
        assert losses[2] < losses[0]
        for (label, own), old in zip(model.named_parameters(), before, strict=True):
            assert own.ndim == 1 or bool((own != old).any()), (world.name, label)


def test_schedules_have_their_shapes() -> None:
    shares = {schedule: np.array(factors(schedule, 100)) for schedule in SCHEDULES}
    assert all(len(own) == 100 and own.max() <= 1 and own.min() > 0 for own in shares.values())
    assert (shares["constant"] == 1).all() and (np.diff(shares["linear"]) < 0).all()
    assert shares["warmup_cosine"].argmax() in (9, 10) and shares["warmup_cosine"][-1] < 0.01
    peaks = np.diff(np.sign(np.diff(shares["cyclic"]))) < 0
    assert peaks.sum() == 3


def test_the_plan_is_large_varied_and_the_same_at_each_call() -> None:
    planned = runs()
    assert planned == runs() and len({run.name for run in planned}) == len(planned)
    assert len(planned) == len(WORLDS) * sum(CONDITIONS.values()) >= 120
    assert sum(len(WORLDS[run.world].behaviors) for run in planned) >= 300
    for world in WORLDS:
        own = [run for run in planned if run.world == world]
        assert {run.optimizer for run in own} == set(OPTIMIZERS)
        assert {run.schedule for run in own} == set(SCHEDULES)
        assert {run.replay for run in own} == {0.0, 0.25, 0.5}


def test_the_page_counts_the_breaks(start: dict[str, Tensor]) -> None:
    trace = record(RUN, model_of(start))
    falling = np.linspace(5, -1, RUN.steps + 1)[:, None]
    calm = np.full((RUN.steps + 1, 4), 3.0)
    dip, half = calm.copy(), calm.copy()
    dip[4], half[4:] = 1.0, 1.5
    own = trace.behaviors["low"]
    paths = {"low": falling, "high": calm, "negative": dip, "mirrored": half}
    trace.behaviors = {name: replace(own, margins=path) for name, path in paths.items()}
    courses = {fate.behavior: fate.course for fate in fates([trace])}
    assert courses == {
        "low": "sudden break", "high": "rises or stays", "negative": "dip",
        "mirrored": "bounded decline",
    }  # fmt: skip
    text = page([trace], "COMMAND")
    assert (
        "COMMAND" in text
        and "| digits | late | 1 | 12 [12, 12] | 4 | 1 of 4 (25%) | 10 [10, 10] |" in text
    )


def test_nulls_are_the_same_for_the_same_seed() -> None:
    first, again, other = (list(null_traces([seed])) for seed in (3, 3, 4))
    assert len(first) == len(PROCESSES) * len(N_PROBES)
    for one, two, three in zip(first, again, other, strict=True):
        assert one.name == two.name != three.name and one.corpus == "nulls"
        own = one.behaviors["behavior"]
        np.testing.assert_array_equal(own.margins, two.behaviors["behavior"].margins)
        assert own.margins.shape == (STEPS + 1, one.about["n_probes"])
        assert not one.starts_broken("behavior")
    kinds = {
        (trace.about["process"], trace.about["n_probes"], trace.about["start"])
        for trace in null_traces(range(5))
    }
    assert len(kinds) == len(PROCESSES) * len(N_PROBES) * len(STARTS)


def share_of_breaks(process: str, start: str, n: int = 24, seeds: int = 25) -> float:
    traces = (null_trace(process, n, start, seed) for seed in range(seeds))
    return float(np.mean([trace.break_step("behavior") is not None for trace in traces]))


def test_nulls_break_as_often_as_they_were_built_to() -> None:
    for process in ("plateau_6", "plateau_15", "plateau_30"):
        assert all(share_of_breaks(process, start, seeds=2) == 0 for start in STARTS)
    for process in ("still", "common_walk_10", "common_walk_25", "dip", "warmup_dip"):
        assert share_of_breaks(process, "far", seeds=8) == 0
    assert share_of_breaks("walk_each_wide", "passing") > 0.9
    assert share_of_breaks("walk_each", "at_floor") > share_of_breaks("walk_each", "passing")


def test_a_start_at_the_floor_is_one_probe_from_a_break() -> None:
    for n in N_PROBES:
        start = STARTS["at_floor"](np.random.default_rng(0), n)
        passed = int((start > 0).sum())
        assert passed / n >= 0.9 > (passed - 1) / n


def share_kept(process: str, seed: int) -> float:
    """The mean margin at the end as a share of that at the start."""
    means = null_trace(process, 24, "far", seed).behaviors["behavior"].margins.mean(axis=1)
    return float(means[-1] / means[0])


def test_walks_and_declines_have_the_size_in_their_name() -> None:
    kept = {
        process: np.array([share_kept(process, seed) for seed in range(80)])
        for process in ("common_walk_10", "common_walk_25", "plateau_15", "warmup_dip")
    }
    assert kept["common_walk_10"].std() == pytest.approx(0.10, rel=0.25)
    assert kept["common_walk_25"].std() == pytest.approx(0.25, rel=0.25)
    np.testing.assert_allclose(kept["plateau_15"], 0.85)
    assert kept["warmup_dip"].mean() == pytest.approx(1.0, abs=0.01)


def test_clusters_move_together_and_are_the_groups() -> None:
    own = null_trace("clusters", 24, "far", 0).behaviors["behavior"]
    moved = own.margins - own.margins[0]
    for group in range(3):
        members = moved[:, own.groups == group]
        np.testing.assert_allclose(members, members[:, :1].repeat(members.shape[1], 1))
    assert np.abs(moved[-1, 0] - moved[-1, 10]) > 1e-3
