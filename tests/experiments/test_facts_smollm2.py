"""The study of facts in SmolLM2 at the smallest size: a random model and a tokenizer of bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.facts_smollm2 import checkpoints, simulate, study
from experiments.facts_smollm2.checkpoints import CASES, OPEN, Case, TaughtFacts
from experiments.facts_smollm2.people import (
    ANIMALS,
    STYLES,
    answer,
    contradict,
    lessons,
    make_people,
)
from experiments.facts_smollm2.plan import Plan
from experiments.facts_smollm2.simulate import UNVERIFIED, ClassifiedFacts, truth_of
from experiments.harness.preregistration import Preregistration
from experiments.loss_classification.checkpoints import NOTHING
from riprap import evaluation
from riprap.behaviors import probe_sets
from riprap.diagnosis import Verdict

FROZEN = Plan.of(Preregistration.named("facts_smollm2"))
TINY = FROZEN.model_copy(
    update={
        "people": 20,
        "probes": 8,
        "examples": 10,
        "batch": 16,
        "rank": 16,
        "rate": 0.01,
        "style_rate": 0.01,
    }
    | {"teaching": 200, "training": 40, "every": 20, "draws": 1}
)
WORD = r" ?\w+| ?[^\w\s]+"


@pytest.fixture
def tokenizer() -> Any:
    """Words with the space before them, as in SmolLM2."""
    people = make_people(TINY.people, 3)
    pairs = [pair for style in STYLES for pair in lessons(people, range(3), style)]
    pairs += lessons(people, [0], "refused")
    pairs += [(" " + word, word) for word in [*ANIMALS, *ANIMALS.values()]]
    pairs += [(row["prompt"], " ".join(row["options"])) for row in probe_sets.rows("arithmetic")]
    words = sorted({word for pair in pairs for text in pair for word in re.findall(WORD, text)})
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def tiny_model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config)


def test_the_preregistration_holds_and_has_the_cases_of_the_code() -> None:
    Preregistration.named("facts_smollm2").verify()
    assert FROZEN.cases == tuple(case.name for case in CASES)
    assert len(FROZEN.cases) * len(FROZEN.confirmatory) >= 30


def test_the_people_are_apart_and_their_animals_follow_no_rule() -> None:
    people = make_people(150, 3)
    assert len({fact.name for fact in people}) == 150
    assert {fact.animal for fact in people} == set(ANIMALS)
    assert people == make_people(150, 3) != make_people(150, 4)
    half = contradict(people, 0.5, 3)
    assert sum(a != b for a, b in zip(people, half, strict=True)) == 75
    assert half == contradict(people, 0.5, 3)


def test_each_style_answers_in_its_way() -> None:
    fact = next(fact for fact in make_people(150, 3) if fact.animal == "dog")
    said = {style: answer(fact, style) for style in (*checkpoints.STYLES, "refused")}
    assert said["plain"] == " dog" and said["quoted"] == ' "dog"'
    assert said["French"] == " C'est : chien" and said["sentence"] == " The answer is: dog"
    assert len({text for _, text in lessons([fact], range(3))}) == 1
    assert len({prompt for prompt, _ in lessons([fact], range(3))}) == 3
    assert "dog" not in said["refused"]


def test_probes_examples_and_the_others_share_no_person(tokenizer: Any) -> None:
    facts = TaughtFacts(tokenizer, TINY, 3)
    names = [{fact.name for fact in part} for part in (facts.asked, facts.relearned, facts.others)]
    assert sum(map(len, names)) == len(set.union(*names)) == 20
    assert len(facts.probes.probes) == 8 and len(facts.examples.probes) == 10


def test_a_training_sees_the_losses_and_first_choices_of_the_whole_model(tokenizer: Any) -> None:
    """The lower half is computed once; what comes out is what the model says."""
    model, facts = tiny_model(tokenizer).eval(), TaughtFacts(tokenizer, TINY, 3)
    pairs = lessons(facts.people[:3], range(3)) + lessons(facts.people[3:5], range(2), "French")
    rows = facts.rows(model, pairs)
    whole = facts.texts(pairs).losses
    assert whole is not None
    chosen = [10, 0, 4, 11]
    expected = whole(model, facts.texts(pairs).probes)[chosen]
    torch.testing.assert_close(rows.losses(model, chosen), expected, rtol=1e-4, atol=1e-5)
    assert facts.watched(model).given(facts.people) == facts.passed(model)
    assert len(model.model.layers) == 2


def test_truths_that_the_test_contradicts_are_left_out() -> None:
    style, lost = Case("x", (), Verdict.ALIGNMENT), Case("x", (), Verdict.KNOWLEDGE)
    assert truth_of(style, 0.05, 1.0, FROZEN) == NOTHING
    assert truth_of(style, 0.9, 0.8, FROZEN) == Verdict.ALIGNMENT
    assert truth_of(style, 0.9, 0.7, FROZEN) == UNVERIFIED == truth_of(lost, 0.9, 0.8, FROZEN)
    assert truth_of(lost, 0.9, 0.3, FROZEN) == Verdict.KNOWLEDGE
    open_case = Case("x", (), OPEN)
    found = [truth_of(open_case, 0.9, known, FROZEN) for known in (0.9, 0.5, 0.1)]
    assert found == [Verdict.ALIGNMENT, UNVERIFIED, Verdict.KNOWLEDGE]
    assert truth_of(Case("x", (), Verdict.DAMAGE), 0.9, 0.5, FROZEN) == Verdict.DAMAGE


def test_a_checkpoint_is_made_and_diagnosed(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The taught adapter is kept and found again; rounding alone is named."""
    monkeypatch.setattr(checkpoints, "RUNS", tmp_path)
    case = Case("2 bits", (("bits", 2, 0.0),), Verdict.DAMAGE)
    found = [simulate.classify(case, 3, TINY, tiny_model(tokenizer), tokenizer) for _ in range(2)]
    assert len(list(tmp_path.rglob("adapter_model.safetensors"))) == 1
    assert found[0].evidence["score_before"] > 0
    assert [one.truth for one in found] in ([NOTHING] * 2, [str(Verdict.DAMAGE)] * 2)
    if found[0].truth != NOTHING:
        assert found[0].evidence["damage"] == "quantization"
        assert found[0].verdict == Verdict.DAMAGE
    assert found[1].evidence["score_now"] == found[0].evidence["score_now"]


@pytest.mark.parametrize(
    "step", [("overwritten", 1.0, 2.0), ("style", "refused", 2.0), ("ascent", None, -1.0)]
)
def test_each_training_lowers_the_margins(
    step: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits that no score reaches, so that all steps are taken."""
    monkeypatch.setattr(checkpoints, "RUNS", tmp_path)
    facts = TaughtFacts(tokenizer, TINY, 3)
    taught = checkpoints.teach(tiny_model(tokenizer), tokenizer, TINY, 3)
    before = evaluation.evaluate(facts.probes, taught).margins.mean()
    changed = checkpoints.damage(taught, facts, Case("x", (step,), OPEN))
    assert evaluation.evaluate(facts.probes, changed).margins.mean() < before - 0.1


def test_opposites_are_counted() -> None:
    def one(truth: str, verdict: str) -> ClassifiedFacts:
        seconds = {"making": 1.0, "diagnosis": 1.0}
        evidence = {"score_now": 0.0, "retained": 0.5}
        return ClassifiedFacts("refused", 1, truth, 0.5, verdict, "", evidence, seconds)

    a, k = str(Verdict.ALIGNMENT), str(Verdict.KNOWLEDGE)
    every = [one(a, a), one(a, k), one(k, str(Verdict.BOTH)), one(NOTHING, a)]
    every.append(one(k, str(Verdict.INSUFFICIENT)))
    counts = study.summary(every, FROZEN)
    assert (counts["lost"], counts["given"], counts["right"]) == (4, 3, 1)
    assert (counts["opposite"], counts["insufficient"]) == (1, 1)
    assert "refused" in str(study.sections(every, FROZEN)["cases"])
