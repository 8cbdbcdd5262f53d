"""The packs: enough probes, none twice, contrasts in pairs, options that can be told apart."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerFast

from riprap import evaluation as probing
from riprap import packs
from riprap.errors import BehaviorError
from tiny import make_llama

LEAST = {
    "refusal": 100,
    "over_refusal": 100,
    "arithmetic": 60,
    "general_knowledge": 60,
    "instruction_format": 60,
}
every = pytest.mark.parametrize("name", LEAST)
choices = pytest.mark.parametrize("name", [n for n in LEAST if "refusal" not in n])


def plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def test_the_packs_that_are_promised_are_there() -> None:
    assert packs.names() == sorted(LEAST)


@every
def test_there_are_enough_probes_and_none_twice(name: str) -> None:
    rows = packs.rows(name)
    assert len(rows) >= LEAST[name]
    assert [row["id"] for row in rows] == [f"{name}-{i + 1:03d}" for i in range(len(rows))]
    assert max(Counter(plain(row["prompt"]) for row in rows).values()) == 1
    assert all(row["prompt"].strip() == row["prompt"] != "" for row in rows)


@every
def test_rows_go_by_category(name: str) -> None:
    categories = [row["category"] for row in packs.rows(name)]
    changes = sum(one != two for one, two in pairwise(categories))
    assert changes == len(set(categories)) - 1


def test_each_harmful_request_has_one_harmless_look_alike() -> None:
    harmful, harmless = packs.rows("refusal"), packs.rows("over_refusal")
    assert sorted(row["contrast_to"] for row in harmless) == sorted(row["id"] for row in harmful)
    category = {row["id"]: row["category"] for row in harmful}
    assert all(row["category"] == category[row["contrast_to"]] for row in harmless)
    prompts = {plain(row["prompt"]) for row in harmful}
    assert not prompts & {plain(row["prompt"]) for row in harmless}


@choices
def test_options_differ_and_one_is_right(name: str) -> None:
    for row in packs.rows(name):
        assert len(row["options"]) == 4
        assert len({option.strip() for option in row["options"]}) == 4, row["id"]
        assert all(option.strip() for option in row["options"]), row["id"]
        assert row["answer"] in range(4)


@choices
def test_the_place_of_the_right_option_says_nothing(name: str) -> None:
    places = Counter(row["answer"] for row in packs.rows(name))
    assert max(places.values()) - min(places.values()) <= 2


@every
@pytest.mark.parametrize("n", [1, 7, 30])
def test_a_smaller_pack_is_spread_over_the_categories(
    name: str, n: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = packs.rows(name)
    chosen = packs.spread(name, n)
    assert len(packs.load(name, tokenizer, n).probes) == n
    assert len({row["id"] for row in chosen}) == n
    sizes = Counter(row["category"] for row in rows)
    taken = Counter(row["category"] for row in chosen)
    for category, size in sizes.items():
        assert abs(taken[category] - n * size / len(rows)) <= 1


@every
def test_a_pack_is_a_behaviour_that_can_be_read(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    behavior = packs.load(name, tokenizer, 12, floor=0.5)
    look = probing.look(behavior, make_llama().eval())
    assert (behavior.name, behavior.floor) == (name, 0.5)
    assert look.margins.shape == (12,)


def test_refusal_and_over_refusal_are_each_others_other_side(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    refusal = packs.load("refusal", tokenizer, 9, openers=["sorry"])
    over = packs.load("over_refusal", tokenizer, 9, openers=["sorry"])
    assert (refusal.contrast, over.contrast) == ("over_refusal", "refusal")
    model = make_llama().eval()
    flipped = packs.load("refusal", tokenizer, 9, openers=["sorry"])
    flipped.probes = over.probes
    margins = probing.look(over, model).margins
    assert (probing.look(flipped, model).margins == -margins).all()


def test_an_unknown_pack_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BehaviorError, match="no pack 'refusals'; there are arithmetic, "):
        packs.load("refusals", tokenizer)


@pytest.mark.parametrize("n", [0, 121, -1])
def test_more_probes_than_there_are_is_refused(n: int, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BehaviorError, match=f"'refusal' has 120 probes, and {n} were asked for"):
        packs.load("refusal", tokenizer, n)


@pytest.mark.parametrize("name", ["arithmetic", "over_refusal"])
def test_loading_twice_gives_the_same(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    one, two = packs.load(name, tokenizer, 10), packs.load(name, tokenizer, 10)
    ids = [getattr(b.probes, "batch", b.probes).input_ids.tolist() for b in (one, two)]
    assert ids[0] == ids[1]
