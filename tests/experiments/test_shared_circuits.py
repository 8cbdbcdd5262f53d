"""Shared circuits: tasks, frozen parts, selected components, rules and conclusions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.shared_circuits import analysis, study, tasks
from experiments.shared_circuits.analysis import Claim, Seed
from experiments.shared_circuits.frozen_parts import (
    ALL_BUT_NEW,
    BLOCKS,
    OLD_ROWS,
    WORDS,
    FrozenEntries,
    is_words,
    part,
)
from experiments.shared_circuits.plan import Condition, Plan
from experiments.shared_circuits.shared_units import select_components
from experiments.shared_circuits.simulate import Run, simulate
from experiments.worlds import ToyWorld
from riprap.diagnosis.geometry import HEAD, NEURON, Component, find_components, parameter_masks
from riprap.errors import ConfigError

TERMS = Preregistration.named("shared_circuits")
PLAN = Plan.of(TERMS)
WORLD = ToyWorld()
TASKS = tasks.tasks(WORLD)
NOTHING: dict[str, torch.Tensor] = {}
NUMBERS = WORLD.config.vocabulary.modulus


def test_the_preregistration_is_frozen_and_made_for_this_ground() -> None:
    TERMS.verify()
    assert tasks.tasks_fingerprint(WORLD) == PLAN.ground
    assert len(set(PLAN.conditions())) == len(PLAN.conditions())


def test_first_and_lookup_answer_as_they_should() -> None:
    for suffix, base in (("", 0), ("_disjoint", NUMBERS)):
        first, lookup = TASKS[f"first{suffix}"], TASKS[f"lookup{suffix}"]
        assert torch.equal(first.targets, first.input_ids[:, 1])
        assert torch.equal(first.input_ids, lookup.input_ids)
        assert ((lookup.targets >= base) & (lookup.targets < base + NUMBERS)).all()
    tables = [TASKS[name].targets for name in ("lookup", "lookup_disjoint")]
    assert torch.equal(tables[0] + NUMBERS, tables[1])
    assert torch.equal(TASKS["first"].input_ids, TASKS["C"].input_ids)
    for other in ("C", "first", "A"):  # no rule that is learned elsewhere answers it
        assert (tables[0] == TASKS[other].targets).float().mean() < 0.1


def test_multiplication_apart_shares_no_word_with_addition() -> None:
    apart, old = TASKS[tasks.APART], TASKS["A"]
    assert torch.equal(apart.targets, TASKS["C_disjoint"].targets)
    words = [{*t.input_ids.unique().tolist(), *t.targets.tolist()} for t in (apart, old)]
    assert not words[0] & words[1]
    assert words[0] & set(tasks.new_words(WORLD, apart)) == set(range(NUMBERS, 2 * NUMBERS))


@pytest.mark.parametrize("held", [BLOCKS, WORDS, OLD_ROWS, ALL_BUT_NEW])
def test_a_part_that_is_held_is_bit_equal_under_decay_and_all_else_moves(held: str) -> None:
    model, task = WORLD.untrained(0), TASKS["C_disjoint"]
    new = tasks.new_words(WORLD, task)
    masks = part(model, held, new)
    before, after = _after(model, masks)
    for name, old in before.items():
        expected = {
            BLOCKS: not is_words(name),
            WORDS: is_words(name),
            OLD_ROWS: False,
            ALL_BUT_NEW: not is_words(name),
        }[held]
        moved = old != after[name]
        if is_words(name) and held in (OLD_ROWS, ALL_BUT_NEW):
            rows = [row for row in range(len(old)) if row not in new]
            assert not moved[rows].any()
            assert moved[new].float().mean() > 0.9
        else:
            assert not moved.any() if expected else moved.float().mean() > 0.9


def test_units_that_are_held_are_bit_equal_and_all_else_moves() -> None:
    model = WORLD.untrained(0)
    every = find_components(model)
    masks = parameter_masks(model, [every[1], every[40], every[200]])
    before, after = _after(model, masks)
    for name, old in before.items():
        moved = old != after[name]
        mask = masks.get(name, torch.zeros_like(moved))
        assert not moved[mask].any()
        assert moved[~mask].float().mean() > 0.9
    assert sum(int(mask.sum()) for mask in masks.values()) == 4 * 16 * 64 + 2 * 3 * 64


def test_with_nothing_held_training_is_as_without() -> None:
    held, plain = (_after(WORLD.untrained(0), masks)[1] for masks in (NOTHING, None))
    assert all(torch.equal(own, plain[name]) for name, own in held.items())


def test_no_such_part() -> None:
    with pytest.raises(ConfigError, match="no part 'ears'"):
        part(WORLD.untrained(0), "ears", [])


def test_picked_units() -> None:
    every = [Component(HEAD, i, "o_proj", (i, i + 1)) for i in range(4)]
    every += [Component(NEURON, i, "down_proj", (i, i + 1)) for i in range(8)]
    old = np.array([9.0, 0.1, 8.0, -3.0, *[1.0, 0.9, 0, 0, 0, 0, 0.5, 0]])
    new = np.array([0.1, 9.0, 6.0, 0.0, *[0.01, 0.8, 0, 1.0, 0.7, 0, 0.6, 0]])

    def chosen(held: str) -> set[int]:
        return {
            every.index(unit) for unit in select_components(held, every, old, new, 0.25, seed=1)
        }

    assert chosen("shared") == {2, 4 + 1, 4 + 6}  # in both; not 0, 1, 4 or 7, which one alone has
    assert chosen("unshared") == {1, 4 + 3, 4 + 4}
    draws = [chosen(f"random {draw}") for draw in range(6)]
    assert all(len(draw) == 3 for draw in draws)
    assert len(set(map(frozenset, draws))) > 1
    assert draws[0] == chosen("random 0")


def made(condition: Condition, lost: float, seed: int = 0, task: float = 1.0) -> Run:
    """A run whose score of A falls in a straight line to 1 − lost, as the task is learned."""
    steps = [0.0, 10.0, 20.0, 30.0, 40.0]
    share = [step / 40 for step in steps]
    scores = [1 - lost * one for one in share]
    visits = {"step": steps, "score/A": scores, "score/B": [1.0] * 5, "within": scores}
    visits |= {"task": [task * one for one in share], "margin/A": scores, "margin/B": [1.0] * 5}
    moves = {f"{name}/A": [-lost] * 4 for name in ("predicted", "cosine", "blocks")}
    moves |= {f"{name}/A": [lost] * 4 for name in ("steep", "moved")}
    return Run(*condition, seed, visits, moves, {"blocks": 1.0, "words": 1 - lost})


def seed_of(losses: dict[str, float], rest: float = 0.4, plan: Plan = PLAN) -> Seed:
    runs = {c: made(c, losses.get(str(c), rest)) for c in plan.conditions()}
    return Seed(0, runs, plan)


def claim(start: str) -> Claim:
    return next(one for one in analysis.claims(PLAN) if one.name.startswith(start))


def test_harm_break_and_half() -> None:
    run = made(Condition("C"), 0.8)
    assert analysis.harm(run) == pytest.approx(0.4)
    assert analysis.broke(run, 0.9) == 10
    assert analysis.halved(run) == 30
    assert analysis.broke(made(Condition("C"), 0.0), 0.9) == float("inf")


def test_equal_accuracy_is_the_best_that_both_reached() -> None:
    slow, fast = made(Condition("C"), 0.4, task=0.5), made(Condition("C"), 0.8)
    assert analysis.equally(slow, fast, 0.9) == pytest.approx((0.4, 0.4, 0.5))
    assert analysis.equally(fast, fast, 0.7) == pytest.approx((0.6, 0.6, 0.7))


def test_claims_of_parts_words_and_functions() -> None:
    seed = seed_of({"C_disjoint, words held": 0.3, "C_disjoint, blocks held": 0.04, "C": 0.6})
    assert claim("circuit: the words need not").value(seed) == pytest.approx(0.75)
    assert claim("circuit: the blocks must").value(seed) == pytest.approx(0.9)
    assert claim("circuit: the loss lies").value(seed) == pytest.approx(1.0)
    assert claim("words: the same words harm").value(seed) == pytest.approx(0.1)
    assert claim("circuit: no word in common").value(seed) == pytest.approx(1.0)
    less = seed_of({"first_disjoint": 0.1, "lookup_disjoint": 0.3})
    assert claim("circuit: other functions harm less, disjoint").value(less) == pytest.approx(0.25)
    nothing = seed_of({"C_disjoint": 0.0})
    assert np.isnan(claim("circuit: the words need not").value(nothing))


def test_claims_of_units_ask_for_a_task_that_was_learned() -> None:
    seed = seed_of({"C, shared held": 0.1, "C, random 0 held": 0.5, "C, random 1 held": 0.3})
    assert claim("circuit: shared units carry the harm, C").name.endswith("C_disjoint")
    assert seed.spared("C") == pytest.approx(0.75)
    assert seed.specific("C") == pytest.approx(0.15)
    idle = Condition("C", "shared")
    unlearned = replace(seed, runs=seed.runs | {idle: made(idle, 0.1, task=0.8)})
    assert unlearned.spared("C") == float("-inf")


def test_early_signals_are_ranked_with_the_harm() -> None:
    losses = {str(c): 0.02 * i for i, c in enumerate(PLAN.conditions())}
    seed = seed_of(losses)
    assert [seed.order(name) for name in analysis.EARLY] == pytest.approx([1.0] * 4)
    opposite = {c: made(c, losses[str(c)]) for c in PLAN.conditions()}
    for condition, run in opposite.items():
        if condition.task == "C_disjoint":
            run.moves["steep/A"][:] = [-losses[str(condition)]] * 4
    crossed = Seed(0, opposite, PLAN)
    assert crossed.order("steep", ["C_disjoint"]) == pytest.approx(-1.0)
    assert crossed.order("steep", ["C", "first"]) == pytest.approx(1.0)


def test_verdicts_need_seeds_that_agree() -> None:
    one = Claim("", "", lambda s: s.seed / 4, 0.5)
    seeds = [Seed(n, {}, PLAN) for n in (0, 1, 2, 3, 4)]
    assert one.verdict(seeds, agree=3) == "supported"
    assert one.verdict(seeds, agree=4) == "mixed"
    assert Claim("", "", lambda s: 0.0, 0.5).verdict(seeds, 4) == "not supported"
    assert Claim("", "", lambda s: float("nan"), 0.5).verdict(seeds, 4) == "mixed"


@pytest.mark.slow
def test_a_run_of_a_smaller_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = PLAN.model_dump(mode="json") | {"steps": 4, "early": 2, "every": 3, "k": 2, "most": 3}
    study |= {"tasks": ["C"], "held": {"C": ["shared"]}, "probes": 4}
    small = TERMS.model_copy(update={"study": study})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ToyWorld, "start", lambda self, seed: self.untrained(seed))
    kept = torch.get_num_threads()
    runs = [simulate(c, 7, small) for c in (Condition("C"), Condition("C", "shared"))]
    torch.set_num_threads(kept)
    for run in runs:
        assert run.visits["step"] == [0, 1, 3, 4]
        assert all(len(column) == 4 for column in run.visits.values())
        assert all(len(column) == 3 for column in run.moves.values())
        realized = run.visits["margin/A"][1] - run.visits["margin/A"][0]
        assert run.moves["predicted/A"][0] == pytest.approx(realized, rel=0.2)
    first = [run.moves["predicted/A"][0] for run in runs]
    assert abs(first[0] - first[1]) > 1e-6  # holding does something
    assert simulate(Condition("C"), 7, small) == runs[0]  # read from its file
    with pytest.raises(PreregistrationError, match="made for world x"):
        simulate(Condition("C"), 8, small.model_copy(update={"study": study | {"ground": "x"}}))


def test_page_and_figure_of_made_runs() -> None:
    losses = {str(c): 0.3 + 0.01 * i for i, c in enumerate(PLAN.conditions())}
    seeds = [seed_of(losses | {"C_disjoint": 0.77}) for _ in range(5)]
    page = study.sections(seeds, PLAN)
    assert [row["claim"] for row in page["claims"]] == [c.name for c in analysis.claims(PLAN)]
    assert [row["condition"] for row in page["conditions"]] == list(map(str, PLAN.conditions()))
    harm = {row["condition"]: row["harm to A"] for row in page["conditions"]}
    assert harm["C_disjoint"] in ("0.39 [0.39, 0.39]", "0.38 [0.38, 0.38]")
    assert "C_disjoint, words held" in str(study.figure(seeds).to_dict())


def _after(
    model: torch.nn.Module, masks: dict[str, torch.Tensor] | None, steps: int = 3
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights before and after some steps of the world's AdamW, with its weight decay."""
    before = {name: own.detach().clone() for name, own in model.named_parameters()}
    holding = None if masks is None else FrozenEntries(model, masks)
    optimizer, data = WORLD.optimizer(model), WORLD.batches("C_disjoint", seed=0)
    for _ in range(steps):
        WORLD.loss(model, next(data)).backward()
        optimizer.step()
        if holding is not None:
            holding.restore()
        optimizer.zero_grad()
    return before, dict(model.named_parameters())
