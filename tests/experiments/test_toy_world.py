"""The toy world: its truths, its splits, its data order, and starts that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from experiments.worlds import ToyConfig, ToyWorld
from riprap.toy import Examples, Vocabulary

OLD = ["A", "B", "over_refusal"]
NEW = ["C", "C_disjoint", "C_context"]
TINY = ToyConfig(
    vocabulary=Vocabulary(modulus=5, frames=2, verbs=2, harmful=2, harmless=2),
    hidden=16,
    feed_forward=32,
    layers=1,
    heads=2,
    initial_range=0.2,
    start_steps=150,
    start_batch=32,
    start_rate=1e-2,
    batch=16,
    rate=1e-2,
    decay=0.01,
    probes=8,
    held_out=12,
)


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return ToyWorld()


@pytest.fixture(scope="module")
def tiny() -> ToyWorld:
    return ToyWorld(TINY)


@pytest.fixture(scope="module")
def learned(tiny: ToyWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    cache = tmp_path_factory.mktemp("worlds")
    return cache, weights(tiny.start(0, cache))


def weights(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {name: part.detach().clone() for name, part in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def rows(examples: Examples) -> list[tuple[int, ...]]:
    return [tuple(row) for row in examples.input_ids.tolist()]


def pairs(examples: Examples) -> set[tuple[tuple[int, ...], int]]:
    return set(zip(rows(examples), examples.targets.tolist(), strict=True))


def first(source: Iterator[Examples], count: int) -> list[Examples]:
    return list(islice(source, count))


def test_a_adds_every_pair_of_numbers_modulo_23(world: ToyWorld) -> None:
    asked = world.tasks["A"].input_ids[:, [1, 3]]
    assert torch.equal(world.tasks["A"].targets, asked.sum(1) % 23)
    assert {tuple(pair) for pair in asked.tolist()} == {
        (x, y) for x in range(23) for y in range(23)
    }
    assert len(world.tasks["A"]) == 529


def test_requests_are_answered_by_their_object_alone(world: ToyWorld) -> None:
    refused, complied = world.tasks["B"], world.tasks["over_refusal"]
    answers = set(refused.targets.tolist()), set(complied.targets.tolist())
    assert [len(answer) for answer in answers] == [1, 1] and answers[0] != answers[1]
    objects = [set(task.input_ids[:, 3].tolist()) for task in (refused, complied)]
    assert [len(kind) for kind in objects] == [12, 12] and not objects[0] & objects[1]
    others = [task.input_ids[:, [0, 1, 2, 4]].unique(dim=0) for task in (refused, complied)]
    assert torch.equal(*others)
    for task in (refused, complied):
        assert len(set(rows(task))) == len(task) == 6 * 8 * 23 * 12


def test_c_multiplies_the_same_numbers_and_its_twin_others(world: ToyWorld) -> None:
    same_numbers, others = world.tasks["C"], world.tasks["C_disjoint"]
    asked = same_numbers.input_ids[:, [1, 3]]
    assert torch.equal(same_numbers.targets, asked.prod(1) % 23)
    moved = others.input_ids[:, [1, 3]] - 23
    assert torch.equal(moved, asked) and torch.equal(others.targets - 23, same_numbers.targets)
    numbers_of_a = set(world.tasks["A"].input_ids[:, [1, 3]].flatten().tolist())
    assert not numbers_of_a & {*others.input_ids.flatten().tolist(), *others.targets.tolist()}


def test_c_in_context_asks_for_c_in_the_frames_of_requests(world: ToyWorld) -> None:
    context, request = world.tasks["C_context"], world.tasks["B"]
    assert torch.equal(
        context.input_ids[:, [0, 4]].unique(dim=0), request.input_ids[:, [0, 4]].unique(dim=0)
    )
    assert torch.equal(context.targets, context.input_ids[:, [1, 3]].prod(1) % 23)
    assert len(set(rows(context))) == len(context) == 6 * 529


@pytest.mark.parametrize("task", NEW)
def test_a_new_task_asks_what_no_old_one_asks(world: ToyWorld, task: str) -> None:
    known = set().union(*(rows(world.tasks[old]) for old in OLD))
    assert not known & set(rows(world.tasks[task]))
    assert {world.tasks[name].input_ids.shape[1] for name in [*OLD, task]} == {5}


def test_c_is_another_function_than_a(world: ToyWorld) -> None:
    agreeing = (world.tasks["A"].targets == world.tasks["C"].targets).float().mean()
    assert agreeing < 0.1


def test_every_token_lies_in_the_vocabulary_and_the_model_has_them_all(world: ToyWorld) -> None:
    used = torch.cat(
        [torch.cat([t.input_ids.flatten(), t.targets]) for t in world.tasks.values()]
    ).unique()
    assert torch.equal(used, torch.arange(len(world.config.vocabulary)))
    assert world.untrained(0).lm_head.out_features == len(world.config.vocabulary)


def test_probes_and_truth_share_nothing_and_are_answered_right(world: ToyWorld) -> None:
    truth = world.truth()
    assert list(truth) == [behavior.name for behavior in world.behaviors()] == OLD
    for behavior in world.behaviors():
        probes = [tuple(row) for row in behavior.probes.input_ids.tolist()]
        held_out = truth[behavior.name]
        assert len(set(probes)) == 48 and len(set(rows(held_out))) == 256
        assert not set(probes) & set(rows(held_out))
        assert pairs(held_out) <= pairs(world.tasks[behavior.name])
        right = zip(probes, behavior.margins.targets.tolist(), strict=True)
        assert set(right) <= pairs(world.tasks[behavior.name])


def test_refusal_and_over_refusal_are_each_others_contrast(world: ToyWorld) -> None:
    contrasts = {behavior.name: behavior.contrast for behavior in world.behaviors()}
    assert contrasts == {"A": None, "B": "over_refusal", "over_refusal": "B"}


def test_probes_are_the_same_in_every_run(world: ToyWorld) -> None:
    torch.manual_seed(5)
    again = ToyWorld().behaviors()
    for one, two in zip(world.behaviors(), again, strict=True):
        assert torch.equal(one.probes.input_ids, two.probes.input_ids)


@pytest.mark.parametrize("task", ["null", *NEW])
def test_batches_follow_from_their_seed_alone(world: ToyWorld, task: str) -> None:
    one = first(world.batches(task, 3), 4)
    torch.manual_seed(99)
    two, other = first(world.batches(task, 3), 4), first(world.batches(task, 4), 4)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(one, two, strict=True))
    assert all(torch.equal(a.targets, b.targets) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a.input_ids, b.input_ids) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0].input_ids, one[1].input_ids)


@pytest.mark.parametrize("task", NEW)
def test_batches_of_a_task_hold_it_and_nothing_else(world: ToyWorld, task: str) -> None:
    for batch in first(world.batches(task, 0), 3):
        assert len(batch) == 64 and pairs(batch) <= pairs(world.tasks[task])


def test_null_goes_on_with_the_old_mix(world: ToyWorld) -> None:
    known = [pairs(world.tasks[old]) for old in OLD]
    for batch in first(world.batches("null", 0), 3):
        drawn = list(zip(rows(batch), batch.targets.tolist(), strict=True))
        assert [sum(row in task for row in drawn) for task in known] == [32, 16, 16]
        assert len(batch) == 64


def test_the_loss_is_the_surprise_at_the_answer(tiny: ToyWorld) -> None:
    model = tiny.untrained(1)
    batch = next(tiny.batches("null", 0))
    probabilities = model(batch.input_ids).logits[:, -1].double().softmax(-1)
    surprise = [-p[t].log() for p, t in zip(probabilities, batch.targets, strict=True)]
    assert tiny.loss(model, batch).item() == pytest.approx(
        torch.stack(surprise).mean().item(), rel=1e-5
    )


def test_a_start_has_learned_the_old_tasks_and_not_the_new(
    tiny: ToyWorld, learned: tuple[Path, dict]
) -> None:
    model = tiny.start(0, learned[0])
    assert min(tiny.evaluate(model, task) for task in OLD) >= 0.99
    assert max(tiny.evaluate(model, task) for task in NEW) < 0.6
    for behavior in tiny.behaviors():
        assert behavior.margins(model, behavior.probes).mean() > 1


def test_a_kept_start_is_the_one_that_training_gives(
    tiny: ToyWorld, learned: tuple[Path, dict], tmp_path: Path
) -> None:
    cache, trained = learned
    steps: list[tuple[int, int]] = []
    kept = weights(tiny.start(0, cache, progress=lambda *at: steps.append(at)))
    assert steps == [] and same(kept, trained)
    fresh = weights(tiny.start(0, tmp_path, progress=lambda *at: steps.append(at)))
    assert steps == [(k + 1, 150) for k in range(150)] and same(fresh, trained)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_another_seed_or_another_world_never_meets_an_old_start(
    tiny: ToyWorld, learned: tuple[Path, dict], tmp_path: Path
) -> None:
    quick = ToyWorld(replace(TINY, start_steps=2))
    starts = [weights(quick.start(seed, tmp_path)) for seed in (0, 1)]
    wider = replace(TINY.vocabulary, verbs=3)
    for config in (replace(TINY, start_steps=3), replace(TINY, start_steps=2, vocabulary=wider)):
        starts.append(weights(ToyWorld(config).start(0, tmp_path)))
    assert len(list(tmp_path.iterdir())) == len(starts) == 4
    assert not any(same(a, b) for i, a in enumerate(starts) for b in starts[:i])
    assert same(weights(quick.start(1, tmp_path)), starts[1])


def test_training_a_start_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    ToyWorld(replace(TINY, start_steps=2)).start(0, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("task", ["C", "C_context"])
def test_a_new_task_is_learned_and_washes_old_ones_away(
    tiny: ToyWorld, learned: tuple[Path, dict], task: str
) -> None:
    lowest = dict.fromkeys(OLD, 1.0)
    model = tiny.start(0, learned[0])
    optimizer, data = tiny.optimizer(model), tiny.batches(task, 7)
    for batch in islice(data, 300):
        tiny.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        lowest = {old: min(low, tiny.evaluate(model, old)) for old, low in lowest.items()}
    assert tiny.evaluate(model, task) >= 0.9
    assert lowest["A" if task == "C" else "B"] < 0.9


def test_the_old_mix_washes_nothing_away(tiny: ToyWorld, learned: tuple[Path, dict]) -> None:
    model = tiny.start(0, learned[0])
    before = weights(model)
    gentle = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=TINY.decay)
    for batch in first(tiny.batches("null", 7), 60):
        tiny.loss(model, batch).backward()
        gentle.step()
        gentle.zero_grad()
    assert not same(before, weights(model))
    assert min(tiny.evaluate(model, old) for old in OLD) >= 0.97
