"""Texts in the bench: rows with a label for each token, and behaviors with any margin."""

from __future__ import annotations

import torch
from torch.nn import functional

from experiments.guards_bench.grounds import GROUNDS, OldTask, accuracy, loss
from experiments.guards_bench.grounds._smollm2 import (
    WIDTH,
    SmolLM2,
    _texts,
    split,
)
from experiments.guards_bench.methods import METHODS, Memory
from experiments.guards_bench.plan import Plan
from experiments.harness.preregistration import Preregistration
from riprap.behaviors import Behavior
from riprap.toy import batches
from tiny import make_llama

PLAN = Plan.of(Preregistration.named("guards_bench"))
PAIRS = [([3, 4, 5], [6, 7]), ([8, 9], [10, 11, 12, 13])]


def test_the_loss_of_texts_is_that_of_their_answers() -> None:
    model, rows = make_llama(), _texts(PAIRS)
    assert rows.input_ids.shape == rows.targets.shape == (2, WIDTH)
    expected = []
    for prompt, answer in PAIRS:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected.append(
            functional.cross_entropy(logits.float(), torch.tensor(answer), reduction="sum")
        )
    assert torch.isclose(loss(model, rows), torch.stack(expected).sum() / 6, rtol=1e-2)


def test_an_answer_that_is_too_long_is_cut() -> None:
    rows = _texts([([3] * 60, [4] * 20)])
    assert (rows.targets[0] != -100).sum() == 4


def test_probes_are_monitored_unseen_or_replayed() -> None:
    parts = split(range(100, 150), 16, 20, 24)
    assert [len(part) for part in parts] == [16, 20, 14]
    assert sorted(row for part in parts for row in part) == list(range(100, 150))
    assert split(range(100, 150), 16, 20, 24) == parts


def test_a_behavior_is_scored_by_its_margins_and_replayed_by_its_pool() -> None:
    def probes(values: list[float]) -> Behavior:
        given = torch.tensor(values)
        return Behavior(
            "kept", given, lambda model, probes: probes + 0 * next(model.parameters()).sum()
        )

    replayed = Behavior.next_token("kept", [[3, 4]], [5])
    old = OldTask(
        "kept", probes([1.0, 2.0, -1.0, 1.0]), _texts(PAIRS), probes([1.0, -1.0]), replayed
    )
    model = make_llama()
    assert accuracy(model, old.probes) == 0.75 and accuracy(model, old.test) == 0.5
    assert old.monitored(0.6).floor == 0.6 and old.buffered() is replayed
    memory = Memory([old], 0, size=(4, 3))
    pairs = memory.labeled()
    assert len(pairs) == 3 and all(labels.shape == (4, WIDTH) for _, labels in pairs)
    assert memory.buffer().batch_size == 4


def test_mixing_joins_texts() -> None:
    batch = next(batches([_texts(PAIRS), _texts(PAIRS[:1])], [3, 2], 0))
    assert batch.input_ids.shape == batch.targets.shape == (5, WIDTH)


def test_a_ground_may_run_some_methods_only() -> None:
    own = {method for ground, method, _, _ in PLAN.jobs("exploratory") if ground == SmolLM2.name}
    assert own == set(SmolLM2.methods) < set(METHODS)
    few = PLAN.jobs("exploratory", only=["smollm2", "kl", "none"], seeds=1)
    assert few == [("smollm2", "none", 0.0, 0)]
    assert GROUNDS["smollm2"].replay[0] == 8
