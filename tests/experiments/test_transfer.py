"""The transfer experiment: world, guards, and conclusions from runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.transfer import analysis, simulate, study
from experiments.transfer import pareto_front as front
from experiments.transfer.methods import GUARDS, old_batches, responses
from experiments.transfer.plan import PLAIN, Plan
from experiments.transfer.simulate import Run, held_bytes
from experiments.worlds import FactsConfig, FactsWorld
from riprap import guards
from riprap.guards import Guard


@pytest.fixture(scope="module")
def world() -> FactsWorld:
    return FactsWorld()


def rows_of(behaviors: list) -> dict[str, set[tuple[int, ...]]]:  # type: ignore[type-arg]
    return {b.name: set(map(tuple, b.probes.rows())) for b in behaviors}


def test_probes_pools_and_unseen_inputs_are_apart(world: FactsWorld) -> None:
    """Else a guard would be judged on what it has learned again."""
    probes, pools, unseen = map(rows_of, (world.behaviors(), world.pools(), world.unseen()))
    assert set(probes) == set(pools) == set(unseen) == set(world.old)
    for name in world.old:
        assert probes[name]
        assert not probes[name] & pools[name]
        assert not probes[name] & unseen[name]
        assert not pools[name] & unseen[name]


def test_old_batches_hold_no_probe_and_no_unseen_input(world: FactsWorld) -> None:
    kept = rows_of(world.behaviors() + world.unseen())
    for batch in [*old_batches(world, count=4)]:
        for row in map(tuple, batch.input_ids.tolist()):
            assert not any(row in own for own in kept.values())
    inputs, labels = responses(world)[0]
    assert (labels[:, :-1] == -100).all()
    assert torch.equal(labels[:, -1], inputs["input_ids"][:, -1])


def test_every_fact_has_one_answer_in_both_wordings(world: FactsWorld) -> None:
    first, second = world.wordings
    assert len(first) == len(second) == world.config.facts  # type: ignore[attr-defined]
    assert torch.equal(first.targets, second.targets)
    assert len(set(map(tuple, first.input_ids.tolist()))) == len(first)
    others = [world.tasks[name] for name in world.tasks if name != "facts"]
    known = {tuple(row) for task in others for row in task.input_ids.tolist()}
    both = [*first.input_ids.tolist(), *second.input_ids.tolist()]
    assert not known & set(map(tuple, both))


def test_every_guard_of_the_library_is_compared(world: FactsWorld) -> None:
    """But for what composes others, and O-LoRA: the world has no adapters."""
    made = {type(entry.make(entry.values[1], world)).__name__ for entry in GUARDS.values()}
    every = {
        name
        for name in guards.__all__
        if isinstance(getattr(guards, name), type) and issubclass(getattr(guards, name), Guard)
    }
    later = {"DERpp", "LwF", "MarginAnchor", "SafeAnchor"}  # since the terms were frozen
    assert every - made == {"Guard", "Chain", "OnAlert", "Scheduled", "OLoRA"} | later


def run(guard: str, value: float, worst: float, learned: float, task: str = "C", seed: int = 1):  # type: ignore[no-untyped-def]
    scores = {"A": worst, "B": 1.0, "over_refusal": 1.0, "facts": 1.0}
    return Run(guard, value, task, seed, scores, scores, learned, 2.0, 1.0, 0.5)


def test_the_search_wants_both_old_and_new() -> None:
    runs = [
        run(PLAIN, 0, 0.1, 1.0),
        run("keeps all, learns nothing", 1, 1.0, 0.1),
        run("keeps all, learns nothing", 2, 0.8, 0.96),
        run("learns all", 1, 0.2, 1.0),
        run("learns all", 2, 0.3, 0.5),
    ]
    chosen = analysis.choose(runs, 0.95)
    assert chosen == {"keeps all, learns nothing": 2, "learns all": 1}


def test_what_was_prevented_is_a_share_of_what_was_lost() -> None:
    plain, guarded = analysis.rows([run(PLAIN, 0, 0.2, 1.0), run("agem", 1, 0.6, 0.5)])
    prevented = guarded.retained(plain)
    assert prevented["A"] == pytest.approx(0.5)
    assert prevented["B"] != prevented["B"]  # nothing was lost: nothing can be prevented
    assert guarded.learned == [0.5]
    assert guarded.cost == [1.0]


def test_a_field_is_as_good_as_its_guards() -> None:
    found = analysis.rows([run(PLAIN, 0, 0.2, 1.0), run("a", 1, 1.0, 1.0), run("b", 1, 0.2, 1.0)])
    lines = analysis.transfer(found, {"a": "safety", "b": "continual learning"})
    by_field = {line.origin: line for line in lines}
    assert by_field["safety"].capability == pytest.approx(1.0)
    assert by_field["continual learning"].capability == pytest.approx(0.0)


def test_the_keeper_passes_only_with_both() -> None:
    def point(worst: float, learned: float) -> front.Point:
        return front.Point("keeper", "C", 1, 1.5, 10, {"A": worst, "B": 1.0}, learned)

    assert front.passed(point(0.95, 0.95), 0.95)
    assert not front.passed(point(0.94, 1.0), 0.95)
    assert not front.passed(point(1.0, 0.94), 0.95)
    assert point(0.5, 2.0).area == 0.5


def test_what_a_guard_holds_is_counted_once() -> None:
    guard = guards.L2SP()
    guard.anchor = [torch.zeros(10), torch.zeros(5, 2)]
    assert held_bytes(guard) == 80
    chain = guards.Chain(guard, guards.Scheduled(guard))
    assert held_bytes(chain) == 80


def test_a_run_is_made_once_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = FactsWorld(FactsConfig(start_steps=5))
    monkeypatch.setattr(FactsWorld, "start", lambda self, seed, **_: small.untrained(seed))
    plan = Plan.of(Preregistration.named("transfer")).model_copy(update={"steps": 3})
    with pytest.warns(UserWarning):
        one = simulate.simulate("l2_sp", 1.0, "C", 7, plan)
    assert one.acted == 1.0
    assert simulate.simulate("l2_sp", 1.0, "C", 7, plan) == one
    page = study.search_sections([one, run(PLAIN, 0, 1, 1, seed=7)], plan)
    assert page["runs"][0]["knob"] == "strength = 1 ← chosen"


def test_a_plan_for_another_world_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Plan.of(Preregistration.named("transfer")).model_copy(update={"world": "0" * 64})
    with pytest.raises(PreregistrationError, match="was made for world"):
        simulate.simulate(PLAIN, 0.0, "C", 7, plan)


def test_the_hypervolume_is_the_area_that_points_dominate() -> None:
    assert front.hypervolume([(0.5, 0.5)]) == pytest.approx(0.25)
    # Three steps of a stair, one point under it, one beyond what counts.
    stair = [(0.2, 1.4), (0.5, 0.8), (0.9, 0.3), (0.4, 0.4)]
    assert front.hypervolume(stair) == pytest.approx(0.9 * 0.3 + 0.5 * 0.5 + 0.2 * 0.2)
    assert front.hypervolume([]) == 0.0


def test_the_keeper_is_compared_with_the_best_guard_over_seeds_and_with_all_together() -> None:
    def point(guard: str, seed: int, worst: float, learned: float) -> front.Point:
        return front.Point(guard, "C", seed, 1.5, 10, {"A": worst, "B": 1.0}, learned)

    points = [
        *(point("keeper", seed, 0.9, 1.0) for seed in (1, 2)),
        point("one", 1, 1.0, 0.5),
        point("one", 2, 1.0, 0.9),  # better on one seed, and the best in the mean
        *(point("two", seed, 0.6, 1.0) for seed in (1, 2)),
        point("plain", 1, 1.0, 1.0),
    ]
    found = front.compare(points, 1.5, "C")
    assert (found.name, found.auto) == ("one", [0.9, 0.9])
    assert found.best == pytest.approx([0.5, 0.9])
    assert found.others == pytest.approx([0.5 + 0.6 * 0.5, 0.9 + 0.6 * 0.1])
    assert found.all == pytest.approx([0.5 + 0.9 * 0.5, 0.9 + 0.9 * 0.1])
    assert front.verdict([found]) == (
        "Below the best always-on guard: nowhere. Above it: C at 1.5 ×."
    )
    behind = front.Comparison("C", 2.0, "one", [0.6, 0.7], [0.8, 0.6], [], [])
    assert "guard: C at 2 ×. Above it: nowhere." in front.verdict([behind])


def test_an_interval_over_seeds_is_students() -> None:
    low, high = front.interval([1.0, 2.0, 3.0])
    reach = 4.302653 / 3**0.5  # t of two degrees of freedom; the standard deviation is 1
    assert (low, high) == pytest.approx((2 - reach, 2 + reach), abs=1e-5)
