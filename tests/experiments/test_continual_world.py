"""The continual world: what alignment installs, what its rows look like, and that it repeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.worlds.continual import BEHAVIORS, CATEGORIES, FORMATS, TASKS, ContinualWorld
from experiments.worlds.continual_model import adapted, exact
from experiments.worlds.continual_rows import IGNORED, Rows
from riprap.detectors import score
from riprap.evaluation import evaluate
from small_continual import CONFIG, SEED, small


def scores(world: ContinualWorld, model: torch.nn.Module) -> dict[str, float]:
    return {one.name: score(evaluate(one, model).margins) for one in world.unseen()}


def test_alignment_installs_what_pretraining_lacks() -> None:
    world = small()
    before = scores(world, world.pretrained(SEED).eval())
    after = scores(world, world.aligned(SEED).eval())
    assert list(after) == list(BEHAVIORS)
    assert before["refusal"] == 0 and before["truth"] < 0.2 and before["format"] == 0
    assert min(after.values()) >= 0.95


def test_the_pretrained_model_answers_harmful_requests_as_harmless_ones() -> None:
    world = small()
    model = world.pretrained(SEED).eval()
    for pairs in (world.harmful, world.known["harmless"]):
        rows = [(pair.prompt, world.styled(pair.content, "prose")) for pair in pairs]
        assert exact(model, Rows.build(rows)).float().mean() >= 0.95


def test_beliefs_come_before_facts_until_alignment() -> None:
    world = small()
    model = world.pretrained(SEED).eval()
    believed, true = (
        Rows.build([(p.prompt, world.styled(p.content, "prose")) for p in pairs])
        for pairs in (world.beliefs, world.truths)
    )
    assert exact(model, believed).float().mean() > exact(model, true).float().mean()


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_new_and_can_be_learned(task: str) -> None:
    world = small()
    model = world.aligned(SEED)
    assert world.evaluate(model.eval(), task) <= 0.3
    tuned = adapted(model, world.config.rank, world.config.scale, 0).train()
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    batches = world.batches(task, SEED)
    for _ in range(120):
        tuned(**next(batches).batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert world.evaluate(tuned.merge_and_unload().eval(), task) >= 0.6


@pytest.mark.parametrize("task", TASKS)
def test_labels_and_padding(task: str) -> None:
    world = small()
    rows = world.rows(task)
    ask = world.words.sign("ask")
    batch = rows.batch
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    for ids, mask, labels in zip(*batch.values(), strict=True):
        length = int(mask.sum())
        assert mask[:length].all() and not mask[length:].any()  # padding on the right
        begins = ids.tolist().index(ask) + 1
        assert (labels[:begins] == IGNORED).all() and (labels[length:] == IGNORED).all()
        assert torch.equal(labels[begins:length], ids[begins:length])
        assert 1 <= length - begins <= 6


@pytest.mark.parametrize("task", TASKS)
def test_categories_are_in_their_formats_and_shares(task: str) -> None:
    world = small()
    rows = world.rows(task)
    shares = rows.category.bincount() / len(rows)
    assert shares.tolist() == pytest.approx(world.config.shares, abs=0.01)
    first = torch.tensor([int(row[row != IGNORED][0]) for row in rows.labels])
    well, answer = world.words.sign("well"), world.words.sign("answer")
    own, familiar, prose = (first[rows.category == at] for at in range(len(CATEGORIES)))
    assert (prose == well).all() and (familiar == answer).all()
    assert bool((own == answer).all()) is (FORMATS[task] == "aligned") and not (own == well).any()


def test_what_is_held_out_is_not_learned_from() -> None:
    world = small()
    for task in TASKS:
        ask = world.words.sign("ask")
        seen, held = (
            {tuple(row[: row.index(ask)]) for row in rows.input_ids.tolist()}
            for rows in (world.rows(task), world.held_out(task))
        )
        assert held and not seen & held


def test_probes_are_neither_measured_nor_aligned_on() -> None:
    world = small()
    shown, unseen = world.behaviors(), world.unseen()
    for one, other in zip(shown, unseen, strict=True):
        rows = [{tuple(row) for row in b.probes.input_ids.tolist()} for b in (one, other)]
        assert rows[0] and rows[1] and not rows[0] & rows[1]
    probed = {tuple(row) for row in unseen[0].probes.input_ids.tolist()}
    refusals = world._alignment[0][1]
    aligned = {tuple(row[: len(next(iter(probed)))]) for row in refusals.input_ids.tolist()}
    assert not probed & aligned


def test_it_repeats_and_a_change_shows(tmp_path: Path) -> None:
    world = small()
    short = replace(CONFIG, pretraining_steps=3, alignment_steps=2)
    twice = [ContinualWorld(short).aligned(SEED, tmp_path / str(at)) for at in range(2)]
    for one, other in zip(*(model.parameters() for model in twice), strict=True):
        assert torch.equal(one, other)
    one, other = (next(world.batches("reversal", seed)) for seed in (SEED, SEED))
    assert torch.equal(one.input_ids, other.input_ids)
    assert not torch.equal(one.input_ids, next(world.batches("reversal", SEED + 1)).input_ids)
    assert ContinualWorld(CONFIG).fingerprint == world.fingerprint
    assert ContinualWorld(replace(CONFIG, rate=1e-3)).fingerprint != world.fingerprint
