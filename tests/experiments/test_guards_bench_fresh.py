"""The fresh grounds of the bench: what they know, what a plain run does, and determinism."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.guards_bench.grounds import FRESH, Ground, Stage, accuracy
from experiments.guards_bench.grounds import _fresh_texts as texts
from experiments.guards_bench.methods import METHODS, NONE
from experiments.guards_bench.simulate import run
from riprap.errors import ConfigError
from shared_data import shared_file

FILES = {
    "sources": ("gsm8k_train.jsonl", "truthfulqa.jsonl"),
    "refused_messages": ("banking77_train.jsonl", "dbpedia14_test.jsonl"),
}
MILD = "tables"


@pytest.fixture(params=FRESH, ids=lambda ground: ground.name)
def ground(request: pytest.FixtureRequest) -> Ground:
    found: Ground = request.param
    for file in FILES.get(found.name, ()):
        shared_file(file)
    return found


class Short(Ground):
    """A ground that is cut to a few steps."""

    looks = 2
    timed = 3

    def __init__(self, whole: Ground, steps: int) -> None:
        self.whole, self.steps = whole, steps
        self.name = whole.name  # type: ignore[misc]

    def start(self, seed: int) -> torch.nn.Module:
        return self.whole.start(seed)

    def stages(self, seed: int) -> list[Stage]:
        return [replace(stage, steps=self.steps) for stage in self.whole.stages(seed)]


def test_the_old_tasks_are_known_and_tested_on_other_rows(ground: Ground) -> None:
    model = ground.start(4)
    (stage,) = ground.stages(4)
    for own in stage.old:
        assert accuracy(model, own.probes) >= 0.6
        assert accuracy(model, own.test) >= 0.6
        probes, pool, test = (
            {tuple(row) for row in rows.input_ids.tolist()}
            for rows in (own.probes, own.pool, own.test)
        )
        assert probes and pool and test
        assert not probes & pool and not test & pool and not test & probes
    learned, unseen = (
        {tuple(row) for row in rows.input_ids.tolist()} for rows in (stage.task, stage.test)
    )
    assert not learned & unseen
    assert ground.layer is None or isinstance(model.get_submodule(ground.layer), torch.nn.Module)


def test_a_plain_run_learns_the_new_task_and_harms_an_old_one(ground: Ground) -> None:
    """The old harm is mild on one ground, and heavy on the others."""
    found = run(ground, NONE, METHODS[NONE], 0.0, 5)
    assert not found.failed
    first, last = found.looks[0], found.looks[-1]
    assert last.new > 0.8 and first.new < 0.5
    lost = max(first.old[name] - last.old[name] for name in first.old)
    assert lost < 0.3 if ground.name == MILD else lost > 0.3


def test_runs_repeat_by_their_seed(ground: Ground) -> None:
    def scores(seed: int) -> list[tuple[dict[str, float], float]]:
        found = run(Short(ground, 12), "mixing_25", METHODS["mixing_25"], 0.25, seed)
        assert not found.failed and found.steps == 12
        return [(look.old, look.new) for look in found.looks]

    assert scores(4) == scores(4)
    assert scores(4) != scores(5)


def test_a_first_training_repeats_by_its_seed() -> None:
    """On the ground that stores nothing."""
    whole = next(own for own in FRESH if own.name == MILD)
    states = [whole.start(one).state_dict() for one in (4, 4, 5)]
    same = [all(torch.equal(states[0][k], other[k]) for k in other) for other in states[1:]]
    assert same == [True, False]


def test_sources_are_of_unequal_sizes() -> None:
    for file in FILES["sources"]:
        shared_file(file)
    (stage,) = texts.Sources().stages(0)
    assert [len(own.probes) for own in stage.old] == [60, 50, 40, 32, 24, 20, 16, 12]
    assert len({int(own.test.targets[0]) for own in stage.old}) == 8


def test_missing_texts_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIPRAP_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"nowhere\.jsonl is missing: this ground reads"):
        texts.read("nowhere", "text")
