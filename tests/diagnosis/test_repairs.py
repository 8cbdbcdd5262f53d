"""Repairs of a toy model whose refusal was trained away: measurements match the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from diagnosing import score
from riprap.diagnosis.recovery import _relearn as refresh
from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.repair._evaluator import Repair
from riprap.diagnosis.repair._repairs import apply_repair, cheapest_repair, compare_repairs
from riprap.diagnosis.repair._strategies import (
    MixedExamples,
    interpolation,
    merged_weights,
    task_vector,
)
from riprap.errors import ConfigError
from riprap.toy._world import ToyWorld

WORLD = ToyWorld()
ADDING, REFUSING, HARMLESS = WORLD.behaviors()
POOLS = {pool.name: pool for pool in WORLD.pools()}
FLOORS = {"B": 0.9, "over_refusal": 0.9}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: part.detach().clone() for name, part in model.named_parameters()}


def unlearn(model: nn.Module, parameters: Any, steps: int = 12) -> None:
    """Harmful requests are complied with, as if they were harmless."""
    batch = WORLD.tasks["B"]
    batch = batch[torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))[:192]]
    comply = WORLD.tasks["over_refusal"].targets[:1].expand(len(batch))
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(steps):
        logits = model(batch.input_ids).logits[:, -1]
        nn.functional.cross_entropy(logits, comply).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """The start, and the same with its refusal trained away."""
    base, tuned = WORLD.start(1000), WORLD.start(1000)
    unlearn(tuned, tuned.parameters())
    assert score(REFUSING, base) == 1.0 and score(REFUSING, tuned) < 0.2
    return base, tuned


@pytest.fixture(scope="module")
def found(pair: tuple[nn.Module, nn.Module]) -> list[Repair]:
    base, tuned = pair
    before = weights(tuned)
    tuned.train()
    prompts = WORLD.tasks["B"].input_ids[:6].tolist()
    made = compare_repairs(
        tuned,
        base,
        [REFUSING, HARMLESS],
        POOLS,
        prompts=prompts,
        responses=[[1]] * 6,
        checkpoints={"the start": weights(base)},
    )
    assert all(torch.equal(part, before[name]) for name, part in tuned.named_parameters())
    assert tuned.training
    return made


def test_what_is_measured_is_what_the_repaired_model_does(
    found: list[Repair], pair: tuple[nn.Module, nn.Module]
) -> None:
    _, tuned = pair
    before = weights(tuned)
    assert [one.kind for one in found] == [
        "no repair",
        "few-shot",
        "replay",
        "interpolation",
        "interpolation of layers",
        "task vector",
        "checkpoint",
    ]
    assert found[0].scores["B"] < 0.2 and found[0].divergence == pytest.approx(0, abs=1e-9)
    for one in found[1:]:
        with apply_repair(one):
            assert any(not torch.equal(p, before[n]) for n, p in tuned.named_parameters())
            everything = score(REFUSING, tuned)  # 48 probes, of which 32 measured
            assert everything == pytest.approx(one.scores["B"], abs=16 / 48)
        assert all(torch.equal(part, before[name]) for name, part in tuned.named_parameters())
        assert one.divergence is not None and one.divergence > 0
    assert found[-1].scores["B"] == 1.0
    assert found[1].steps > 0 and found[2].steps > 0 and found[3].steps == 0
    assert cheapest_repair(found, FLOORS) is not None


def test_few_examples_bring_a_disposition_back(found: list[Repair]) -> None:
    few, replay = found[1:3]
    assert few.scores["B"] >= 0.9 and replay.scores["B"] >= 0.5


def test_interpolation_is_linear_in_float64(pair: tuple[nn.Module, nn.Module]) -> None:
    base, tuned = pair
    there, here = weights(base), weights(tuned)
    (way,) = interpolation(tuned, base, None, most_changed_only=False)
    for place in (places := way()):
        for name, part in tuned.named_parameters():
            exact = here[name].double() + place.amount * (there[name].double() - here[name])
            torch.testing.assert_close(part.double(), exact, atol=1e-6, rtol=1e-6)
    places.close()


def test_only_the_layers_that_moved_go_back() -> None:
    base, tuned = WORLD.start(1000), WORLD.start(1000)
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight.add_(0.1)
        tuned.lm_head.weight.add_(0.001)
    before, there = weights(tuned), weights(base)
    (way,) = interpolation(tuned, base, None, most_changed_only=True)
    with closing(way()) as places:
        last = list(islice(places, 5))[-1]
        assert last.amount == 1.0 and "1 of" in last.detail
        for name, part in tuned.named_parameters():
            wanted = there if name.startswith("model.layers.1.") else before
            assert torch.equal(part, wanted[name])
    assert all(torch.equal(part, before[name]) for name, part in tuned.named_parameters())


@pytest.mark.parametrize("large", [0, 10**9])
def test_a_task_vector_unlearns_the_reference_and_is_taken_off(
    large: int, pair: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "MAX_FULL_PARAMETERS", large)  # adapters, or all weights
    base, tuned = pair
    here = weights(tuned)
    (way,) = task_vector(tuned, base, _refusals(), None)
    taken: list[dict[str, Tensor]] = []
    with closing(way()) as places:
        for place in islice(places, 3):
            taken.append({n: (here[n] - p.detach()).double() for n, p in tuned.named_parameters()})
            assert place.steps > 0
    assert any(float(change.abs().max().detach()) > 0 for change in taken[2].values())
    for name, whole in taken[2].items():  # λ = 1
        torch.testing.assert_close(taken[1][name], whole / 2, atol=1e-6, rtol=1e-4)
    unwilling = WORLD.start(1000)
    with torch.no_grad():
        for name, part in unwilling.named_parameters():
            part.add_(taken[2][name].float())
    assert score(REFUSING, unwilling) < 0.6  # τ is what makes the reference refuse no longer
    assert all(torch.equal(part, here[name]) for name, part in tuned.named_parameters())


def test_behaviors_learned_one_after_the_other_have_the_gradient_of_all() -> None:
    model = WORLD.start(1000).double()
    both = MixedExamples({name: Examples(pool) for name, pool in POOLS.items()}, 4, 0)
    wanted = torch.autograd.grad(both.loss(model, []), list(model.parameters()))
    both.backward(model, [])
    assert any(float(one.abs().max()) > 0 for one in wanted)
    for part, one in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(part.grad, one)


def _refusals() -> Any:
    return MixedExamples({"B": Examples(POOLS["B"])}, 10, 0)


def test_a_repair_by_adapters_can_be_merged(
    pair: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "MAX_FULL_PARAMETERS", 0)
    base, tuned = pair
    said: list[tuple[int, int]] = []
    few = compare_repairs(
        tuned,
        base,
        [REFUSING, HARMLESS],
        {"B": POOLS["B"]},
        progress=lambda done, total: said.append((done, total)),
    )[1]
    assert said[0] == (0, said[0][1])
    assert said[-1] == (said[0][1], said[0][1])
    assert said == sorted(said)
    ids = WORLD.tasks["B"].input_ids[:4]
    fresh = WORLD.untrained(0).eval()
    with apply_repair(few), torch.no_grad():
        wanted = tuned(ids).logits
        merged = merged_weights(tuned)
    fresh.load_state_dict(merged)
    torch.testing.assert_close(fresh(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    assert not any("lora_" in name for name, _ in tuned.named_parameters())


def test_a_model_with_adapters_is_its_own_reference() -> None:
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    tuned: Any = get_peft_model(WORLD.start(1000), settings)  # type: ignore[arg-type]
    unlearn(tuned, [part for part in tuned.parameters() if part.requires_grad], 40)
    assert score(REFUSING, tuned) < 0.2
    before = weights(tuned)
    found = compare_repairs(tuned, None, [REFUSING, HARMLESS], {"B": POOLS["B"]})
    kinds = {one.kind: one for one in found}
    assert set(kinds) == {"no repair", "few-shot", "interpolation", "interpolation of layers"}
    assert kinds["interpolation"].scores["B"] >= 0.9
    assert all(torch.equal(part, before[name]) for name, part in tuned.named_parameters())


def test_nothing_lost_is_nothing_to_repair() -> None:
    base = WORLD.start(1000)
    (only,) = compare_repairs(base, WORLD.start(1001), [REFUSING], {"B": POOLS["B"]})
    assert only.kind == "no repair" and only.passes({"B": 0.9})
    with pytest.raises(ConfigError, match="changes nothing"), apply_repair(only):
        pass


def test_put_back_when_a_score_fails(pair: tuple[nn.Module, nn.Module]) -> None:
    base, tuned = pair
    before = weights(tuned)
    calls = iter(range(2))

    def task(_model: nn.Module) -> float:
        return float(next(calls))

    with pytest.raises(StopIteration):
        compare_repairs(tuned, base, [REFUSING], {"B": POOLS["B"]}, task=task)
    assert all(torch.equal(part, before[name]) for name, part in tuned.named_parameters())


def _table() -> Iterator[Repair]:
    empty = Repair("few-shot", "", 1.0, {"B": 0.95}, {"B": 1.0}, divergence=0.5, seconds=2.0)
    yield empty
    yield replace(empty, kind="replay", divergence=0.2)
    yield replace(empty, kind="interpolation", divergence=0.2, seconds=1.0)
    yield replace(empty, kind="task vector", divergence=0.0, scores={"B": 0.1})


def test_the_cheapest_passes_all_floors_and_takes_least() -> None:
    table = list(_table())
    chosen = cheapest_repair(table, {"B": 0.9})
    assert chosen is not None and chosen.kind == "interpolation"
    assert cheapest_repair(table, {"B": 0.99}) is None
    by_task = [
        replace(one, task_score=value) for one, value in zip(table, (3.0, 1, 2, 9), strict=True)
    ]
    chosen = cheapest_repair(by_task, {"B": 0.9})
    assert chosen is not None and chosen.kind == "few-shot"
    with pytest.raises(ConfigError, match="'X'"):
        cheapest_repair(table, {"X": 0.9})


def test_wrong_input_is_refused(pair: tuple[nn.Module, nn.Module]) -> None:
    base, tuned = pair
    with pytest.raises(ConfigError, match="'B' is lost and has no examples"):
        compare_repairs(tuned, base, [REFUSING], {"A": POOLS["A"]})
    with pytest.raises(ConfigError, match="different names"):
        compare_repairs(tuned, base, [REFUSING, REFUSING], {"B": POOLS["B"]})
    with pytest.raises(ConfigError, match="10 are to be learned"):
        compare_repairs(tuned, base, [REFUSING], {"B": POOLS["B"].subset([0, 1])})
