"""Shipped probe sets: enough probes, no duplicates, contrasts in pairs, distinct options."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, pairwise

import pytest
from transformers import PreTrainedTokenizerFast

from riprap import evaluation, probe_sets
from riprap.errors import BehaviorError
from tiny import make_llama

MIN_PROBES = 200
NAMES = ("arithmetic", "general_knowledge", "instruction_format", "over_refusal", "refusal")
MAX_OVERLAP = 0.8  # of the words of two prompts
every = pytest.mark.parametrize("name", NAMES)
choices = pytest.mark.parametrize("name", [n for n in NAMES if "refusal" not in n])


def plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def test_all_probe_sets_are_shipped() -> None:
    assert probe_sets.names() == [*NAMES]


@every
def test_there_are_enough_probes_and_no_duplicates(name: str) -> None:
    rows = probe_sets.rows(name)
    assert len(rows) >= MIN_PROBES
    assert sorted(row["id"] for row in rows) == [f"{name}-{i + 1:03d}" for i in range(len(rows))]
    assert max(Counter(plain(row["prompt"]) for row in rows).values()) == 1
    assert all(row["prompt"].strip() == row["prompt"] != "" for row in rows)


@every
def test_no_two_prompts_share_most_of_their_words(name: str) -> None:
    prompts = [
        frozenset(re.findall(r"[\w'+/*-]+", r["prompt"].lower())) for r in probe_sets.rows(name)
    ]
    overlap = max(len(a & b) / len(a | b) for a, b in combinations(prompts, 2))
    assert overlap <= MAX_OVERLAP


@every
def test_rows_are_ordered_by_category(name: str) -> None:
    categories = [row["category"] for row in probe_sets.rows(name)]
    changes = sum(one != two for one, two in pairwise(categories))
    assert changes == len(set(categories)) - 1


def test_each_harmful_request_has_one_harmless_counterpart() -> None:
    harmful, harmless = probe_sets.rows("refusal"), probe_sets.rows("over_refusal")
    assert sorted(row["contrast_to"] for row in harmless) == sorted(row["id"] for row in harmful)
    category = {row["id"]: row["category"] for row in harmful}
    assert all(row["category"] == category[row["contrast_to"]] for row in harmless)
    prompts = {plain(row["prompt"]) for row in harmful}
    assert not prompts & {plain(row["prompt"]) for row in harmless}


def test_calculations_are_right() -> None:
    """Where the options contain the calculation, the right one alone is true."""
    checked = 0
    for row in probe_sets.rows("arithmetic"):
        found = [re.search(r"([\d+\-x/ ]*\d) = (\d+)", option) for option in row["options"]]
        for index, match in enumerate(found):
            if match is None:
                continue
            value = eval(match[1].replace("x", "*"))  # digits and signs, by the pattern
            assert (value == int(match[2])) is (index == row["answer"]), row["id"]
        checked += all(found)
    assert checked >= 120
    results = [
        re.findall(r"\d+", o)[-1] for r in probe_sets.rows("arithmetic") for o in r["options"]
    ]
    lengths = [{len(result) for result in results[i : i + 4]} for i in range(0, len(results), 4)]
    assert all(len(length) == 1 for length in lengths)


@choices
def test_options_differ_and_one_is_right(name: str) -> None:
    for row in probe_sets.rows(name):
        assert len(row["options"]) == 4
        assert len({option.strip() for option in row["options"]}) == 4, row["id"]
        assert all(option.strip() for option in row["options"]), row["id"]
        assert row["answer"] in range(4)


@choices
def test_the_index_of_the_right_option_is_balanced(name: str) -> None:
    places = Counter(row["answer"] for row in probe_sets.rows(name))
    assert max(places.values()) - min(places.values()) <= 2


@every
@pytest.mark.parametrize("n", [1, 7, 30])
def test_a_smaller_probe_set_covers_the_categories(
    name: str, n: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = probe_sets.rows(name)
    chosen = probe_sets.evenly_spaced(name, n)
    assert len(probe_sets.load(name, tokenizer, n).probes) == n
    assert len({row["id"] for row in chosen}) == n
    sizes = Counter(row["category"] for row in rows)
    counts = Counter(row["category"] for row in chosen)
    for category, size in sizes.items():
        assert abs(counts[category] - n * size / len(rows)) <= 1


@every
def test_a_probe_set_is_a_behavior_that_can_be_evaluated(
    name: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    behavior = probe_sets.load(name, tokenizer, 12, floor=0.5)
    look = evaluation.evaluate(behavior, make_llama().eval())
    assert (behavior.name, behavior.floor) == (name, 0.5)
    assert look.margins.shape == (12,)


def test_refusal_and_over_refusal_are_contrasts_of_each_other(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    refusal = probe_sets.load("refusal", tokenizer, 9, prefixes=["sorry"])
    over = probe_sets.load("over_refusal", tokenizer, 9, prefixes=["sorry"])
    assert (refusal.contrast, over.contrast) == ("over_refusal", "refusal")
    model = make_llama().eval()
    flipped = probe_sets.load("refusal", tokenizer, 9, prefixes=["sorry"])
    flipped.probes = over.probes
    margins = evaluation.evaluate(over, model).margins
    assert (evaluation.evaluate(flipped, model).margins == -margins).all()


def test_an_unknown_probe_set_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BehaviorError, match="no probe set 'refusals'; choose one of arithmetic, "):
        probe_sets.load("refusals", tokenizer)


@pytest.mark.parametrize("n", [0, 211, -1])
def test_an_impossible_number_of_probes_is_refused(
    n: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(BehaviorError, match=f"'refusal' has 210 probes; n={n} is not among"):
        probe_sets.load("refusal", tokenizer, n)


@pytest.mark.parametrize("name", ["arithmetic", "over_refusal"])
def test_loading_twice_gives_the_same(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    one, two = probe_sets.load(name, tokenizer, 10), probe_sets.load(name, tokenizer, 10)
    ids = [getattr(b.probes, "batch", b.probes).input_ids.tolist() for b in (one, two)]
    assert ids[0] == ids[1]
