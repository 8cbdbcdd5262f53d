"""The biographies world: its rows say what they should, and what is done to it can be looked up."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from experiments.worlds import Biographies, BiographiesConfig
from experiments.worlds import biographies as changed
from experiments.worlds import biographies_rows as made

SMALL = BiographiesConfig(hidden=16, feed_forward=16, pretraining_steps=2, alignment_steps=2)
FORM = {"ask", "tell", "?"}
WORDS = {at: word for word, at in made.IDS.items()}


def spoken(ids: torch.Tensor) -> str:
    return " ".join(WORDS[token] for token in ids.tolist() if token)


def test_only_the_answer_of_a_row_is_learned() -> None:
    world = Biographies(SMALL)
    fact = world.people[0]
    rows = world.asked([fact], "polite")
    assert spoken(rows.input_ids[0]) == (
        f"ask {fact.relation} {fact.who} ? dear friend {fact.value} end"
    )
    learned = rows.labels[0][rows.labels[0] >= 0]
    assert spoken(learned) == f"dear friend {fact.value} end"


def test_the_groups_of_people_share_nobody() -> None:
    world = Biographies(SMALL)
    assert not {fact.who for fact in world.people} & {fact.who for fact in world.new}
    assert len(world.people) == len(set(world.people)) == 320


def test_probes_and_examples_share_no_fact() -> None:
    world = Biographies(SMALL)
    probes = world.behavior().probes.rows()
    asked = {frozenset(spoken(torch.tensor(row)).split()) - FORM for row in probes}
    assert len(asked) == SMALL.probes
    for example in world.examples():
        before = example["input_ids"][0][example["labels"][0] < 0]
        assert frozenset(spoken(before).split()) - FORM not in asked


def test_contradictions_differ_in_the_share_that_was_asked() -> None:
    world = Biographies(SMALL)
    for share in (0.0, 0.5, 1.0):
        facts = changed.overwritten(world, share)
        differ = [new.value != old.value for new, old in zip(facts, world.people, strict=True)]
        assert sum(differ) == round(share * len(world.people))
        assert all(new.who == old.who for new, old in zip(facts, world.people, strict=True))


def test_truth_is_what_the_model_says_first() -> None:
    """An untrained model is right about nothing; one that is told the facts is right about them."""
    world = Biographies(SMALL)
    model = world.untrained(3)
    facts = world.people[:3]
    rows = world.statements(facts)
    assert world.right(model, rows) == 0.0
    steps = changed.training(world, model, world.mixed([rows], [9], 0))
    for _ in islice(steps, 300):
        pass
    assert world.right(model, rows) == 1.0


def test_a_start_is_trained_once(tmp_path: Path) -> None:
    world = Biographies(SMALL)
    seen: list[int] = []
    first = world.start(3, tmp_path, lambda done, total: seen.append(done))
    again = world.start(3, tmp_path, lambda done, total: seen.append(-1))
    assert seen and -1 not in seen
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    never = world.never(3, tmp_path)
    assert any(
        not torch.equal(a, b) for a, b in zip(first.parameters(), never.parameters(), strict=True)
    )
