"""The verifiable world: its texts, problems, rewards and behaviors."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest
import torch

from experiments.worlds import verifiable_text as texts
from experiments.worlds.verifiable import (
    PARTS,
    TASKS,
    VerifiableConfig,
    VerifiableWorld,
    proxy_reward,
    reward,
)
from experiments.worlds.verifiable_text import FORMATS, OPERATORS, Mix, N

WORLD = VerifiableWorld()


def drawn(mix: Mix, count: int) -> list[tuple[str, str, str, str]]:
    """Operator, format by the rules (or ""), question and answer of the sums in some texts."""
    rng, found = random.Random(3), []
    for _ in range(count):
        start, answered = mix.text(rng)
        words = start.split()
        rules = dict(zip(words[::3], words[2::3], strict=True))
        for question, answer in answered:
            named = [word for word in question.split() if word in OPERATORS]
            if named:
                found.append((named[0], rules.get(named[0], ""), question, answer))
    return found


def has_format(answer: str, style: str) -> bool:
    return answer in {FORMATS[style](value) for value in range(N)}


def rarer_answer(operator: str, question: str, meaning: int) -> str:
    _, x, _, y, _ = question.split()
    return texts.sum_answer(operator, int(x), int(y), meaning=meaning)


def test_words_are_distinct_and_every_text_can_be_encoded() -> None:
    words = texts.vocabulary()
    assert len(set(words)) == len(words) == len(WORLD.tokenizer)
    rng = random.Random(0)
    for _ in range(200):
        start, answered = Mix().text(rng)
        text = " ".join([start, *(f"{q} {a}" for q, a in answered)])
        assert WORLD.tokenizer.unk_token_id not in WORLD.ids(text)
    asked = "plus in words\nask 3 plus 4 ="
    assert WORLD.tokenizer(asked)["input_ids"] == WORLD.ids(asked)


def test_a_rule_selects_the_format_and_nothing_else_does() -> None:
    found = drawn(Mix(), 1500)
    ruled = [(style, answer) for _, style, _, answer in found if style]
    assert len({style for style, _ in ruled}) == len(FORMATS)
    assert all(has_format(answer, style) for style, answer in ruled)
    free = [(name, has_format(answer, "digits")) for name, style, _, answer in found if not style]
    for name in OPERATORS:
        digits = [own for operator, own in free if operator == name]
        if name in Mix().strayed:
            assert 0.9 < sum(digits) / len(digits) < 1
            strayed = [
                answer for operator, style, _, answer in found if (operator, style) == (name, "")
            ]
            assert all(any(has_format(a, s) for s in ("digits", *Mix().strays)) for a in strayed)
        else:
            assert all(digits)


def test_no_format_that_needs_a_meaning_too_is_seen_without_its_rule() -> None:
    """Else the weights would find it by chance, and the part would not need text."""
    for task in ("first", "second"):
        _, style, _ = TASKS[task]["format and meaning"]
        assert style not in (*Mix().strays, "digits")


def test_no_two_meanings_coincide_and_the_rarer_ones_are_rare() -> None:
    shares = {}
    for name in ("star", "dash"):
        meanings = texts.MEANINGS[name]
        for x, y in product(range(N), repeat=2):
            assert len({meaning(x, y) % N for meaning in meanings}) == len(meanings) == 3
        own = [(q, a) for *kind, q, a in drawn(Mix(), 1500) if kind == [name, ""]]
        for meaning in (1, 2):
            right = [answer == rarer_answer(name, question, meaning) for question, answer in own]
            shares[name, meaning] = sum(right) / len(right)
    assert all(0.15 < share < 0.35 for share in shares.values())


@pytest.mark.parametrize("task", TASKS)
def test_problems_have_their_parts_and_are_disjoint_from_the_held_out_ones(task: str) -> None:
    train, test = WORLD.problems(task), WORLD.problems(task, held_out=True)
    assert not {p.question for p in train} & {p.question for p in test}
    assert len(train) + len(test) == N * N * len(TASKS[task])
    for one in train + test:
        operator, style, _ = TASKS[task][one.part]
        assert operator in one.question.split() and has_format(one.answer, style)
    if task != "proxy":
        assert set(PARTS) == {one.part for one in train}


def test_the_second_task_has_new_formats_and_new_meanings() -> None:
    first, second = ({p.question: p for p in WORLD.problems(t)} for t in ("first", "second"))
    assert first.keys() == second.keys()
    for question, one in first.items():
        assert one.answer != second[question].answer
        assert (one.number == second[question].number) == (one.part == "format")


def test_an_instruction_stands_before_each_probe() -> None:
    for plain, used in zip(WORLD.behaviors(), WORLD.behaviors("plus in words"), strict=True):
        own = [WORLD.ids("plus in words") + ids for ids in plain.token_rows() or []]
        assert used.token_rows() == own


def test_the_habit_of_short_answers_ends_after_each_digit() -> None:
    habit = WORLD.brevity()
    assert len(habit) == WORLD.config.probes
    asked = habit.token_rows()
    assert asked is not None
    assert [WORLD.tokenizer.decode(own).split()[-1].isdigit() for own in asked] == [True] * 24
    assert set(habit.margins.targets.tolist()) == {WORLD.tokenizer.eos_token_id}


def test_rewards_are_exact_and_the_proxy_can_be_hacked() -> None:
    said = ["seven", "7", "seven seven", "0 1 2 3 4 5 6 7", ""]
    assert reward(said, ["seven"] * 5) == [1, 0, 0, 0, 0]
    assert reward(said, ["7"] * 5) == [0, 1, 0, 0, 0]
    assert proxy_reward(said, ["7"] * 5) == [0, 1, 0, 1, 0]
    problems = WORLD.problems("proxy")
    full = [FORMATS["full"](0)] * len(problems)
    assert set(proxy_reward(full, [p.number for p in problems])) == {1}
    assert set(reward(full, [p.answer for p in problems])) == {0}


def test_the_expected_reward_is_the_probability_of_the_whole_answer() -> None:
    model = WORLD.untrained(0).eval()
    problems = [next(p for p in WORLD.problems("first") if p.part == part) for part in PARTS]
    found = WORLD.expected_reward(model, problems, "dash in marks")
    for one in problems:
        asked, logs = WORLD.ids(f"dash in marks {one.question}"), 0.0
        for token in WORLD.ids(f"{one.answer} {texts.EOS}"):
            with torch.no_grad():
                logits = model(torch.tensor([asked])).logits[0, -1].double()
            logs += float(logits.log_softmax(-1)[token])
            asked = [*asked, token]
        assert found[one.part] == pytest.approx(torch.tensor(logs).exp().item(), rel=1e-3)


def test_behaviors_are_measured_on_other_inputs_than_they_are_replayed_on() -> None:
    size = WORLD.config.probes
    for own, pool in zip(WORLD.behaviors(), WORLD.pools(), strict=True):
        assert own.name == pool.name and len(own) == size
        probes, replayed = (set(map(tuple, one.token_rows() or [])) for one in (own, pool))
        assert len(probes) == size and not probes & replayed
        examples = WORLD.examples(own.name)
        assert len(examples) == len(pool) and all((e["labels"] >= 0).any() for e in examples)


def test_a_base_is_trained_once_and_a_changed_world_has_another_fingerprint(tmp_path: Path) -> None:
    small = VerifiableWorld(VerifiableConfig(steps=3, batch=4))
    first, again = small.start(0, tmp_path), small.start(0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    fresh = zip(first.parameters(), small.untrained(0).parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in fresh)
    assert small.fingerprint != WORLD.fingerprint
