"""The short way to a verdict: the same verdict as the full one, with less work."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diagnosis.lookup import (
    FORMAT,
    PROBES,
    Lookup,
    behavior,
    examples,
    loss,
    lost_form,
    lost_knowledge,
    recovered,
)
from riprap import Behavior, evaluation
from riprap.diagnosis import RecoveryEvidence, Verdict
from riprap.diagnosis.recovery import STEPS, _relearn, train_steps, trainable_copy
from riprap.diagnosis.recovery._examples import Examples, group_by_length
from riprap.diagnosis.recovery._verdict import settled_verdict

CASES = {
    "form": lambda: lost_form(Lookup()),
    "knowledge": lambda: lost_knowledge(Lookup()),
    "half and form": lambda: lost_form(lost_knowledge(Lookup(), 0.5)),
    "nothing": Lookup,
}


class Counted(Lookup):
    """A lookup table that counts the rows it computes: `learned` ones with a graph, `looked`."""

    def __init__(self, rows: Counter[str]) -> None:
        super().__init__()
        self.register_forward_hook(lambda _module, given, _output: count(rows, len(given[0])))
        self.load_state_dict(lost_form(Lookup()).state_dict())


def count(rows: Counter[str], n: int) -> None:
    rows["learned" if torch.is_grad_enabled() else "looked"] += n


@pytest.mark.parametrize("name", CASES)
def test_both_ways_agree(name: str) -> None:
    given = {"unrelated_examples": examples()[15:], "shot_counts": (10,)}
    short = recovered(CASES[name](), **given)
    whole = recovered(CASES[name](), **given, full=True)
    assert short.verdict is whole.verdict
    assert short.evidence.score_now == whole.evidence.score_now


def test_the_short_way_learns_and_looks_less() -> None:
    rows, all_rows = Counter[str](), Counter[str]()
    given: dict[str, Any] = {"unrelated_examples": examples()[15:], "shot_counts": (10,)}
    short = recovered(Counted(rows), **given)
    whole = recovered(Counted(all_rows), **given, full=True)
    assert short.verdict is whole.verdict is Verdict.ALIGNMENT
    assert 0 < rows["learned"] < all_rows["learned"] / 4
    assert rows["looked"] < all_rows["looked"] / 3


def test_unrelated_examples_are_learned_only_if_they_matter() -> None:
    given: dict[str, Any] = {"unrelated_examples": examples()[15:], "shot_counts": (10,)}
    form = recovered(lost_form(Lookup()), **given)
    knowledge = recovered(lost_knowledge(Lookup()), **given)
    assert form.point("own", 10) is not None and form.point("unrelated", 10) is None
    assert form.evidence.known_after_unrelated != form.evidence.known_after_unrelated  # NaN
    assert knowledge.point("unrelated", 10) is not None


def test_nothing_is_learned_without_a_loss() -> None:
    rows = Counter[str]()
    model = Counted(rows)
    model.load_state_dict(Lookup().state_dict())
    found = recovered(model)
    assert found.verdict is Verdict.INSUFFICIENT and "no loss to explain" in found.reason
    assert found.curve == [] and rows["learned"] == 0 < rows["looked"]


def test_draws_are_added_while_the_interval_straddles_a_bound() -> None:
    few = behavior(PROBES[:12])  # eight test probes: a wide interval
    some = lost_form(lost_knowledge(Lookup(), 0.2))  # half of these probes are known, and unsaid
    half = recovered(some, behavior=few, draws=3).point("own", 10)
    all_lost = recovered(lost_knowledge(Lookup()), draws=3).point("own", 10)
    assert half is not None and half.score.n == 3
    assert all_lost is not None and all_lost.score.n < 3


def test_a_verdict_is_settled_if_the_interval_has_one_verdict() -> None:
    wide = recovered(lost_knowledge(Lookup())).evidence
    assert wide.retained <= 0.65 and wide.retained_high < 0.75

    def ends(low: float, share: float, high: float) -> RecoveryEvidence:
        return replace(wide, retained=share, retained_low=low, retained_high=high)

    assert settled_verdict(ends(0.0, 0.05, 0.1)) is Verdict.KNOWLEDGE
    assert settled_verdict(ends(0.1, 0.3, 0.6)) is Verdict.KNOWLEDGE  # weakened, not unsaid
    assert settled_verdict(ends(0.3, 0.6, 0.8)) is None
    assert settled_verdict(ends(0.8, 0.9, 1.0)) is Verdict.ALIGNMENT
    assert settled_verdict(ends(0.7, 0.8, 1.0)) is None  # a verdict, but not everywhere


def test_progress_counts_steps_and_ends_at_their_number() -> None:
    seen: list[tuple[int, int]] = []
    given: dict[str, Any] = {"shot_counts": (5,), "draws": 2}
    for full in (False, True):
        seen.clear()
        model = lost_form(Lookup())
        recovered(model, **given, full=full, progress=lambda *counts: seen.append(counts))
        done, total = zip(*seen, strict=True)
        assert list(done) == sorted(done) and list(total) == sorted(total, reverse=True)
        assert done[-1] == total[-1] > 0 and total[0] > done[0]


def test_all_examples_are_one_draw() -> None:
    point = recovered(lost_form(Lookup()), shot_counts=(30,), draws=3, full=True).point("own", 30)
    assert point is not None and point.score.n == 1


def test_the_kept_step_is_the_one_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later steps of a run are worse, and are not those measured."""
    monkeypatch.setattr(_relearn, "FULL_LEARNING_RATES", (1e-2,))
    model, own, data = lost_form(Lookup()), behavior(), Examples(examples(), loss)
    point = recovered(model, behavior=own, shot_counts=(10,), draws=1, full=True).point("own", 10)
    assert point is not None and point.steps[0] < max(STEPS)
    chosen = np.random.default_rng([0, 0]).permutation(len(data))[:10].tolist()
    with trainable_copy(model) as (parameters, adapters):
        steps = train_steps(model, parameters, adapters, data, chosen, point.learning_rate)
        next(step for step in steps if step == point.steps[0])
        margins = evaluation.evaluate(own, model).margins
    order = np.random.default_rng(0).permutation(len(own)).tolist()
    test = [row for row in order if row not in set(order[::3])]
    assert point.score.mean == pytest.approx((margins[test] > 0).mean())


def test_groups_of_length_save_padding() -> None:
    assert group_by_length([5, 5, 6, 5]) == [[0, 1, 2, 3]]
    assert group_by_length([5, 40, 6, 5]) == [[0, 2, 3], [1]]
    assert group_by_length([7]) == [[0]]


def test_gradients_of_groups_add_up() -> None:
    rows = [[1], [2, 3, 4, 5, 6, 7, 8, 9], [3], [4]]
    taught = Behavior.next_token("taught", rows, [FORMAT, 61, 62, 63])

    class Summed(Lookup):
        """Takes a mask, so that rows of different lengths can be padded."""

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
        ) -> torch.Tensor:
            seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            return self.head((self.table(input_ids) * seen[..., None]).cumsum(1))

    model, data = Summed(), Examples(taught)
    data.backward(model, [0, 1, 2, 3])
    by_groups = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    data.loss(model, [0, 1, 2, 3]).backward()
    whole = [p.grad for p in model.parameters() if p.grad is not None]
    for one, other in zip(by_groups, whole, strict=True):
        torch.testing.assert_close(one, other)
