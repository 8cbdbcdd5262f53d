"""Arguments of `recover`, its errors, and that it restores the model."""

from __future__ import annotations

import copy

import pytest
import torch

from diagnosis.lookup import (
    FORMAT,
    KEYS,
    OTHERS,
    PROBES,
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
    value_of,
)
from riprap import Behavior, diagnosis
from riprap.diagnosis.recovery import _relearn
from riprap.diagnosis.recovery._examples import Examples
from riprap.errors import ConfigError


def test_custom_margins_may_use_several_tensors() -> None:
    """Probes of two parts are no two probes."""
    told = behavior()
    keys, wanted = told.probes.input_ids, told.margins.targets

    def lead(model: Lookup, probes: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        inputs, right = probes
        logits = model(inputs)[:, -1]
        others = logits.scatter(-1, right[:, None], float("-inf")).amax(-1)
        return logits.gather(-1, right[:, None]).squeeze(-1) - others

    own = Behavior("own", (keys, wanted), lead)
    found = recovered(lost_form(Lookup()), behavior=own, unrelated_examples=examples()[15:])
    assert found.evidence.score_now == 0.0 and found.evidence.n_lost > 10


def test_few_examples_are_learned_as_far_as_they_go() -> None:
    found = diagnosis.recover(
        lost_form(Lookup()), behavior(), examples()[:6], loss=loss, reference=Lookup(), full=True
    )
    assert {point.count for point in found.curve if point.source == "own"} == {1, 2, 5}


def test_answers_are_those_of_the_examples_too() -> None:
    """Facts that were overwritten by values that are right for no probe, but for examples."""
    told = behavior([key for key in PROBES if key % VALUES < 3])
    model = Lookup()
    with torch.no_grad():
        for key in PROBES:
            model.table.weight[key] = model.table.weight[key].roll(3)
    taught = Behavior.next_token("spare", [[k] for k in OTHERS], [value_of(k) for k in OTHERS])
    reference = Lookup()
    found = diagnosis.recover(model, told, taught, reference=reference)
    assert found.evidence.in_format_now == 1.0
    labeled = [
        {"input_ids": torch.tensor([[k, 0]]), "labels": torch.tensor([[-100, value_of(k)]])}
        for k in OTHERS
    ]
    assert (
        Examples(labeled).answer_tokens()
        == Examples(taught).answer_tokens()
        == list(range(KEYS, FORMAT))
    )


def test_a_batch_that_the_model_cannot_take_raises() -> None:
    with pytest.raises(ConfigError, match="'labels', which the model's forward does not accept"):
        rows = [{"input_ids": torch.tensor([[k]]), "labels": torch.tensor([k])} for k in OTHERS]
        diagnosis.recover(lost_form(Lookup()), behavior(), rows, reference=Lookup())


def test_each_side_has_probes_enough() -> None:
    few = Behavior.next_token("other", [[1], [7]], [value_of(1)] * 2)
    with pytest.raises(ConfigError, match="'other' has 2 probes"):
        diagnosis.recover(
            lost_knowledge(Lookup()),
            one_answer(),
            same_answer_examples(),
            loss=loss,
            reference=Lookup(),
            contrast=few,
        )


def test_the_model_is_as_before() -> None:
    model = lost_form(lost_knowledge(Lookup())).train()
    model.table.weight.requires_grad_(False)
    before = {name: part.clone() for name, part in model.state_dict().items()}
    given = {"reference": Lookup(), "naive_model": lost_knowledge(Lookup())}
    noise = torch.get_rng_state()
    recovered(model, unrelated_examples=examples()[:10], **given)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert not model.table.weight.requires_grad and model.head.bias.requires_grad
    assert model.training and model.head.bias.grad is None
    assert torch.equal(noise, torch.get_rng_state())


def test_weights_serve_as_reference_and_naive_model() -> None:
    model = lost_form(Lookup())
    never = lost_knowledge(Lookup())
    by_model = recovered(model, naive_model=never)
    by_weights = recovered(
        model, reference=Lookup().state_dict(), naive_model=dict(never.named_parameters())
    )
    assert by_model.evidence == by_weights.evidence


def test_steps_are_relative_to_the_size_of_each_tensor() -> None:
    model = Lookup()
    own = list(model.parameters())
    before = [p.detach().clone() for p in own]
    stream = _relearn.train_steps(model, own, False, Examples(examples(), loss), [0, 1], 0.01)
    next(stream)
    for now, then in zip(own, before, strict=True):
        most = (now.detach() - then).abs().max()
        assert most == pytest.approx(0.01 * float(then.square().mean().sqrt()), rel=1e-3)


def test_large_models_learn_through_adapters_that_leave_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_relearn, "MAX_FULL_PARAMETERS", 0)
    model = lost_form(Lookup())
    names = [name for name, _ in model.named_modules()]
    before = copy.deepcopy(model.state_dict())
    with _relearn.trainable_copy(model) as (parameters, adapters):
        assert adapters and len(parameters) == 2
        with torch.no_grad():
            for part in parameters:
                part.add_(1.0)
        assert not torch.equal(model(torch.tensor([[0]])), Lookup()(torch.tensor([[0]])))
    assert names == [name for name, _ in model.named_modules()]
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"shot_counts": (1, 50), "full": True}, "30 examples"),
        ({"shot_counts": (2, 1), "full": True}, "rising counts"),
        ({"shot_counts": (1, 2)}, r"\[1, 2\] is a curve, which only full=True measures"),
        ({"draws": 0}, "at least one draw"),
        ({"unrelated_examples": examples()[:3], "shot_counts": (10,)}, "3 unrelated examples"),
        ({"reference": None}, "no reference was given"),
        ({"behavior": behavior(PROBES[:4])}, "6 or more"),
        ({"reference": {"table.weight": torch.zeros(3)}}, "same model"),
    ],
)
def test_impossible_arguments_raise(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recovered(lost_form(Lookup()), **given)


def test_float16_is_refused() -> None:
    with pytest.raises(ConfigError, match="float16"):
        recovered(lost_form(Lookup()).half())


def test_a_batch_that_begins_with_a_probe_is_refused() -> None:
    batch = {"ids": torch.tensor([[key, value_of(key)] for key in PROBES[:12]])}
    with pytest.raises(ConfigError, match="score is contaminated"):
        diagnosis.recover(lost_form(Lookup()), behavior(), batch, loss=loss, reference=Lookup())


def test_an_example_that_is_a_probe_is_refused() -> None:
    with pytest.raises(ConfigError, match="score is contaminated"):
        diagnosis.recover(lost_form(Lookup()), behavior(), behavior(range(20)), reference=Lookup())
