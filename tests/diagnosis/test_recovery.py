"""Recovery by a few examples, on models with known losses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from diagnosis.lookup import (
    FORMAT,
    KEYS,
    PROBES,
    STRENGTH,
    VALUES,
    Lookup,
    behavior,
    examples,
    loss,
    lost_form,
    lost_knowledge,
    one_answer,
    recovered,
    same_answer_examples,
    scattered,
    value_of,
)
from riprap import Behavior, diagnosis
from riprap.behaviors._margin_fns import Choice, Continuations
from riprap.diagnosis import Verdict
from riprap.diagnosis.recovery import _relearn
from riprap.errors import ConfigError

CASES = {
    "form": (lambda: lost_form(Lookup()), Verdict.ALIGNMENT),
    "knowledge": (lambda: lost_knowledge(Lookup()), Verdict.KNOWLEDGE),
    "half of it": (lambda: lost_knowledge(Lookup(), 0.5), Verdict.KNOWLEDGE),
    "both": (lambda: lost_form(lost_knowledge(Lookup())), Verdict.BOTH),
    "half and form": (lambda: lost_form(lost_knowledge(Lookup(), 0.5)), Verdict.BOTH),
    "nothing": (Lookup, Verdict.INSUFFICIENT),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_what_was_done(name: str) -> None:
    make, verdict = CASES[name]
    found = recovered(make())
    assert found.verdict is verdict, found.reason


def test_a_form_that_does_not_come_back_is_lost_all_the_same() -> None:
    """Ten examples do not undo so strong a liking for one word; the knowledge is gone too."""
    model = lost_knowledge(Lookup())
    with torch.no_grad():
        model.head.bias[FORMAT] = 20.0
    found = recovered(model)
    assert found.evidence.in_format_after_examples < 0.2
    assert found.verdict is Verdict.BOTH


def test_a_custom_margin_never_shows_knowledge_loss() -> None:
    """Knowledge and form cannot be separated, so the verdict is not a knowledge loss."""
    told = behavior()
    own = Behavior("own", told.probes, lambda model, probes: told.margins(model, probes))
    for bias in (0.1, 0.5, 5.0):
        model = lost_form(Lookup())
        with torch.no_grad():
            model.head.bias[FORMAT] = 4.0 + bias
        assert recovered(model, behavior=own).verdict is Verdict.INSUFFICIENT


def test_a_loss_of_a_part_is_judged_by_that_part() -> None:
    """Most of the knowledge remains, but none on the lost probes."""
    model = Lookup()
    with torch.no_grad():
        for key in PROBES[::4]:
            model.table.weight[key] = model.table.weight[key].roll(1)
    found = recovered(model)
    assert found.evidence.score_now > 0.7
    assert found.verdict is Verdict.KNOWLEDGE, found.reason


def test_one_answer_for_all_is_no_answer() -> None:
    model = lost_knowledge(Lookup())
    with torch.no_grad():
        model.head.bias[KEYS] = 3 * STRENGTH
    assert recovered(model).verdict is Verdict.BOTH


def test_a_choice_tells_the_form_by_the_first_word() -> None:
    """Options are distinguished or not, and the first choice is something else."""
    values = [[[value_of(key + by)] for by in (1, 2, 3, 0)] for key in PROBES]
    right = torch.tensor([[False, False, False, True]] * len(PROBES))
    probes = Continuations.build([[key] for key in PROBES], values, right)
    chosen = Behavior("chosen", probes, Choice())
    for model, verdict in (
        (scattered(Lookup()), Verdict.KNOWLEDGE),
        (lost_form(scattered(Lookup())), Verdict.BOTH),
    ):
        found = recovered(model, behavior=chosen)
        assert found.evidence.in_format_before == 1.0
        assert found.verdict is verdict, found.reason


class Twice(Lookup):
    """Two tables: whether the key or its name is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names = copy.deepcopy(self.table)

    def by_name(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits when asked in the other form."""
        return self.head(self.names(input_ids))


@pytest.mark.parametrize(("both", "verdict"), [(False, "alignment loss"), (True, "knowledge loss")])
def test_a_right_paraphrased_answer_is_known(both: bool, verdict: str) -> None:
    told = behavior()

    def named(model: Twice, probes: Any) -> torch.Tensor:
        return told.margins.from_logits(model.by_name(probes.input_ids)[:, -1])

    model = Twice()
    scattered(model)
    if both:
        model.names.load_state_dict(model.table.state_dict())
    restated = Behavior("by name", told.probes, named)
    found = recovered(model, reference=Twice(), paraphrased=restated)
    assert found.evidence.known_after_examples < 0.5  # by what the examples bring back all is lost
    assert found.verdict == verdict, found.reason
    assert ("another form" in found.reason) is not both
    with pytest.raises(ConfigError, match="one for each"):
        recovered(model, reference=Twice(), paraphrased=behavior(PROBES[:8]))


def test_the_reason_mentions_swapped_labels() -> None:
    """Each value is called by the next one's name: as if all facts were others."""
    model = Lookup()
    with torch.no_grad():
        model.head.weight[KEYS:FORMAT] = model.head.weight[KEYS:FORMAT].roll(1, 0)
    found = recovered(model)
    assert (
        found.evidence.retained_relabeled == 1.0 and "labels may have been swapped" in found.reason
    )
    mixed = recovered(scattered(Lookup()))
    assert mixed.verdict is Verdict.KNOWLEDGE
    assert mixed.evidence.retained_relabeled < 0.5 and "exchanged" not in mixed.reason


def test_a_reference_without_the_behavior_is_insufficient() -> None:
    found = recovered(lost_knowledge(Lookup()), reference=lost_knowledge(Lookup()))
    assert found.verdict is Verdict.INSUFFICIENT and "the reference itself" in found.reason


def test_few_probes_leave_it_open() -> None:
    found = recovered(lost_knowledge(Lookup(), 0.5), behavior=behavior(PROBES[16:22]))
    e = found.evidence
    assert e.retained_high - e.retained_low > 0.5
    assert found.verdict is Verdict.INSUFFICIENT


def test_a_likelihood_begins_at_the_reference() -> None:
    words = {f"w{at}": at for at in range(KEYS)}

    def tokenizer(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [words.get(word, value_of(0)) for word in text.split()]}

    kept = Behavior.likelihood(
        "kept", tokenizer, texts=["value"] * 30, prompts=[f"w{k}" for k in PROBES]
    )
    found = diagnosis.recover(
        lost_form(Lookup()),
        kept,
        examples(),
        loss=loss,
        reference=Lookup(),
        shot_counts=(2,),
        draws=1,
    )
    assert found.evidence.score_before == 1.0
    assert kept.margins.reference is None  # the behavior that was given is as it was


def test_only_known_answers_return() -> None:
    whole = recovered(lost_form(Lookup()), full=True).point("own", 10)
    half = recovered(lost_form(lost_knowledge(Lookup(), 0.5)), full=True).point("own", 10)
    assert whole is not None and half is not None
    assert whole.score.mean > 0.8 and whole.recovered.mean > 0.8
    assert half.score.mean == pytest.approx(whole.score.mean / 2, abs=0.15)


def test_the_selected_rate_and_steps_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of only the reported rate and steps gives the same result."""

    def point() -> diagnosis.RecoveryPoint:
        found = recovered(lost_form(Lookup()), shot_counts=(5,), draws=1).point("own", 5)
        assert found is not None
        return found

    whole = point()
    assert whole.learning_rate in _relearn.FULL_LEARNING_RATES and set(whole.steps) <= set(
        _relearn.STEPS
    )
    monkeypatch.setattr(_relearn, "FULL_LEARNING_RATES", (whole.learning_rate,))
    monkeypatch.setattr(_relearn, "STEPS", whole.steps)
    assert point().score.mean == whole.score.mean
    monkeypatch.setattr(_relearn, "STEPS", (1,))
    assert point().score.mean != whole.score.mean


def test_one_answer_for_all_may_have_been_taught_anew() -> None:
    model = lost_form(Lookup())
    given = {"reference": Lookup(), "loss": loss}
    alone = diagnosis.recover(model, one_answer(), same_answer_examples(), **given)
    assert alone.verdict is Verdict.INSUFFICIENT and "compare with a naive model" in alone.reason


def test_a_naive_model_shows_what_examples_teach() -> None:
    """A model that never distinguished these keys learns the answer as fast."""
    never = Lookup()
    with torch.no_grad():
        never.table.weight.zero_()
        never.head.bias[FORMAT] = 0.01
    found = diagnosis.recover(
        lost_form(Lookup()),
        one_answer(),
        same_answer_examples(),
        loss=loss,
        reference=Lookup(),
        naive_model=never,
    )
    assert found.verdict is Verdict.INSUFFICIENT
    assert found.evidence.guess_rate == 1.0


def test_a_contrast_shows_what_is_distinguished() -> None:
    """Refusing all is no refusal: both sides count alike."""
    others = Behavior.next_token("other", [[k] for k in range(1, KEYS, VALUES)], [value_of(1)] * 10)
    found = diagnosis.recover(
        lost_knowledge(Lookup()),
        one_answer(),
        same_answer_examples(),
        loss=loss,
        reference=Lookup(),
        contrast=others,
    )
    assert found.evidence.score_before == 1.0
    assert found.verdict in (Verdict.KNOWLEDGE, Verdict.BOTH)
