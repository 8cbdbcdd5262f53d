"""A held-out run holds what its model did: margins, interference, and true answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from experiments.onset.held_out import world as worlds
from experiments.onset.held_out.characters import ALPHABET, WINDOW, Characters
from experiments.onset.held_out.graphs import NODES, QUESTIONS, Graphs, draw
from experiments.onset.held_out.intents import CLASSES, Intents
from experiments.onset.held_out.optimizers import OPTIMIZERS, SCHEDULES, make, share
from experiments.onset.held_out.plan import KINDS, Recipe, plan
from experiments.onset.held_out.recording import batches, record
from experiments.onset.held_out.sequences import (
    LENGTH,
    SYMBOLS,
    Sequences,
    closing,
    counting,
    marked,
)
from experiments.onset.held_out.world import OLD, Behavior, World
from experiments.onset.trace import Trace
from shared_data import shared_file


def characters() -> World:
    return Characters(shared_file("dolly_sample.jsonl").parent)


def intents() -> World:
    return Intents(shared_file("banking77_train.jsonl").parent)


RECIPE = Recipe("sequences", "late", OLD, None, 12, "sgd", "cosine", 0.5, 0.25, 12, 3)


def untrained(world: World) -> nn.Module:
    torch.manual_seed(1)
    return world.new_model()


def recipe_of(world: World) -> Recipe:
    return replace(RECIPE, world=world.name, then=world.far[0], switch=5)


@pytest.mark.parametrize("make_world", [Sequences, Graphs, characters, intents])
def test_a_run_holds_what_a_plain_loop_does(make_world: Callable[[], World]) -> None:
    """Margins by sorting logits, and ⟨h_b, Δθ⟩ with a gradient by `backward`, in a loop by hand."""
    world = make_world()
    start, recipe = untrained(world), recipe_of(world)
    behaviors = world.candidates()
    trace = record(world, start, behaviors, recipe)
    again = untrained(world)
    loop = torch.optim.SGD(again.parameters(), recipe.learning_rate, momentum=0.9)
    gradients: dict[str, list[torch.Tensor]] = {}
    largest = max(share("cosine", at, recipe.steps) for at in range(recipe.steps))
    for step, (inputs, targets) in enumerate(batches(world, recipe)):
        for name, probes in behaviors.items():
            np.testing.assert_allclose(
                trace.behaviors[name].margins[step], by_hand(world, again, probes), atol=1e-5
            )
            if step in (0, 8):
                again.zero_grad()
                world.margins(again, probes).mean().backward()
                gradients[name] = [
                    torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
                    for weight in again.parameters()
                ]
        before = [weight.detach().clone() for weight in again.parameters()]
        loop.zero_grad()
        loss = world.loss(again, inputs, targets)
        loss.backward()
        rate = share("cosine", step, recipe.steps) / largest
        loop.param_groups[0]["lr"] = recipe.learning_rate * rate
        loop.step()
        assert trace.losses[step] == pytest.approx(loss.item(), rel=1e-5)
        assert trace.rates[step] == pytest.approx(rate)
        for name, gradient in gradients.items():
            product = sum(
                float((own * (new.detach() - old)).sum())
                for own, new, old in zip(gradient, again.parameters(), before, strict=True)
            )
            assert trace.behaviors[name].interference[step] == pytest.approx(
                product, rel=1e-3, abs=1e-6
            )
    assert trace.refreshed.tolist() == [0, 8]
    assert all(len(own.gradient_norms) == 2 for own in trace.behaviors.values())
    assert all(len(own.margins) == recipe.steps + 1 for own in trace.behaviors.values())


def by_hand(world: World, model: nn.Module, probes: Behavior) -> np.ndarray:
    with torch.no_grad():
        told = model(probes.inputs).double().numpy()
    right = probes.right.numpy()
    if isinstance(world, Graphs):
        return 0.5 - np.abs(told - right)
    told, right = (
        told.reshape(len(told), -1, told.shape[-1]),
        right.reshape(len(told), -1, told.shape[-1]),
    )
    return np.array(
        [
            min(max(row[mask]) - max(row[~mask]) for row, mask in zip(rows, masks, strict=True))
            for rows, masks in zip(told, right, strict=True)
        ]
    )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_run_is_repeated_exactly_and_another_seed_differs(kind: str, tmp_path: Path) -> None:
    world = Graphs()
    start, behaviors = untrained(world), world.candidates()
    first, second, other = (
        record(world, start, behaviors, replace(recipe_of(world), optimizer=kind, seed=seed))
        for seed in (3, 3, 4)
    )
    read = Trace.load(first.save(tmp_path))
    assert (read.corpus, read.half, read.about["optimizer"]) == ("held_out", "confirmatory", kind)
    for name, own in second.behaviors.items():
        np.testing.assert_array_equal(own.margins, first.behaviors[name].margins)
        np.testing.assert_array_equal(own.interference, first.behaviors[name].interference)
        assert not np.array_equal(own.margins, other.behaviors[name].margins)
        assert (own.margins[0] != own.margins[-1]).any()
        np.testing.assert_allclose(read.behaviors[name].scores(), own.scores())
    np.testing.assert_array_equal(
        untrained(world)(behaviors["hops"].inputs).detach(),
        start(behaviors["hops"].inputs).detach(),
    )


def test_small_updates_change_the_mean_margin_by_the_interference() -> None:
    world = Graphs()
    recipe = replace(recipe_of(world), optimizer="adamw", rate=0.001, schedule="constant")
    trace = record(world, untrained(world), world.candidates(), recipe)
    for own in trace.behaviors.values():
        means = own.margins.astype(float).mean(1)
        assert own.interference.sum() == pytest.approx(means[-1] - means[0], rel=0.1, abs=1e-4)


def test_the_plan_is_even_and_its_names_are_unique() -> None:
    runs = plan(Sequences()) + plan(Graphs())
    assert (
        len({run.name for run in runs}) == len(runs) == 2 * sum(one.runs for one in KINDS.values())
    )
    assert plan(Graphs()) == plan(Graphs())
    for attribute, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
        counts = Counter(getattr(run, attribute) for run in runs)
        assert set(counts) == set(choices)
        assert max(counts.values()) <= 2 * min(counts.values())
    assert all(0 < run.switch < run.steps for run in runs if run.then is not None)


def test_after_a_switch_the_other_data_come() -> None:
    world = Sequences()
    recipe = replace(RECIPE, task="parity", then="largest", switch=5, replay=0.25)
    firsts = [
        {SYMBOLS[row[row > 0][0]] for row in inputs.numpy()} for inputs, _ in batches(world, recipe)
    ]
    for step, seen in enumerate(firsts):
        assert ("P" in seen, "M" in seen) == (step < 5, step >= 5)
        assert seen & set("CNR")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_positive_shares(schedule: str) -> None:
    rates = [share(schedule, at, 200) for at in range(200)]
    assert min(rates) > 0 and max(rates) == pytest.approx(1, abs=0.01)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no optimizer is named 'lion'"):
        make("lion", nn.Linear(2, 2), 0.1)
    with pytest.raises(ValueError, match="no schedule is named 'square'"):
        share("square", 0, 10)


def test_muon_moves_inner_matrices_and_adamw_the_rest() -> None:
    model = Graphs().new_model()
    inner, rest = make("muon", model, 0.01)
    assert isinstance(inner, torch.optim.Muon) and isinstance(rest, torch.optim.AdamW)
    moved = [len(one.param_groups[0]["params"]) for one in (inner, rest)]
    assert sum(moved) == len(list(model.parameters())) and moved[0] == 4


def test_a_model_is_pretrained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Graphs()
    world.pretraining = (3, 1e-3)
    first = worlds.pretrained(world, tmp_path)
    monkeypatch.setattr(worlds, "pretrain", lambda *_: pytest.fail("trained again"))
    second = worlds.pretrained(world, tmp_path)
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_behaviors_are_probes_that_pass_and_too_few_are_refused() -> None:
    world = Graphs()

    class Exact(nn.Module):
        def forward(self, graphs: torch.Tensor) -> torch.Tensor:
            return truths[tuple(graphs.shape)] + wrong

    every = world.candidates()
    truths = {tuple(probes.inputs.shape): probes.right for probes in every.values()}
    every = {"hops": every["hops"]}
    world.candidates = lambda: every  # type: ignore[method-assign]
    truths = {tuple(every["hops"].inputs.shape): every["hops"].right}
    wrong = torch.where(torch.arange(100) % 4 == 0, 0.9, 0.1)
    kept = worlds.known(world, Exact())["hops"]
    assert len(kept.groups) == world.sizes["hops"] == 40
    torch.testing.assert_close(kept.right, every["hops"].right[torch.arange(100) % 4 != 0][:40])
    wrong = torch.full((100,), 0.9)
    with pytest.raises(ValueError, match="0 of 100 probes of 'hops' in world 'graphs' pass"):
        worlds.known(world, Exact())


def test_graph_answers_are_those_of_a_search() -> None:
    rng = np.random.default_rng(0)
    for question in range(len(QUESTIONS)):
        inputs, answers = draw(np.full(20, question), rng, rings=question == 1)
        for graph, answer in zip(inputs.numpy(), answers, strict=True):
            neighbors = {node: set(np.flatnonzero(graph[node, :NODES])) for node in range(NODES)}
            source, target = (int(np.flatnonzero(graph[:, NODES + mark])[0]) for mark in (0, 1))
            distances, edge = {source: 0}, [source]
            while edge:
                node = edge.pop(0)
                for other in neighbors[node] - set(distances):
                    distances[other] = distances[node] + 1
                    edge.append(other)
            near = neighbors[source]
            truth = (
                distances[target],
                len(near),
                len(near & neighbors[target]),
                sum(one in neighbors[two] for one in near for two in near) / 2,
                sum(1 <= distance <= 2 for distance in distances.values()),
                sum(map(len, neighbors.values())) / 2 / NODES,
            )
            assert answer == pytest.approx(truth[question])


def test_string_answers_are_those_of_a_reader() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        text, answer, depth = closing(rng)
        rest = text[1:]
        while (
            shorter := rest.replace("()", "").replace("[]", "").replace("{}", "").replace("<>", "")
        ) != rest:
            rest = shorter
        assert len(rest) == depth and dict(zip("([{<", ")]}>", strict=True))[rest[-1]] == answer
        text, answer, _ = counting(rng)
        assert int(answer) == sum(letter == "a" for letter in text) % 4
        text, answer, _ = marked(rng)
        assert text.count("*") == 2 and answer == text[text.index("*") + 1]
        assert len(text) <= LENGTH


def test_probes_of_characters_ask_what_the_text_says() -> None:
    world = Characters(shared_file("dolly_sample.jsonl").parent)
    clean = "".join(letter if letter in ALPHABET else " " for letter in world.unseen)
    for name, probes in world.candidates().items():
        for windows, right in zip(probes.inputs.numpy(), probes.right.numpy(), strict=True):
            for window, mask in zip(windows, right, strict=True):
                before = "".join(ALPHABET[number] for number in window)
                assert len(before) == WINDOW and mask.any()
                answers = {ALPHABET[number] for number in np.flatnonzero(mask)}
                assert any(before + answer in clean for answer in answers), (name, before)


def test_noisy_labels_are_noisy_and_new_tasks_use_other_classes() -> None:
    world = Intents(shared_file("banking77_train.jsonl").parent)
    rng = np.random.default_rng(0)
    old = {int(label) for part in world.parts[OLD] for label in part[1]}
    truth = {
        row.tobytes(): label
        for grams, labels in world.parts[OLD]
        for row, label in zip(grams, labels, strict=True)
    }
    for task, lowest, highest in (("a tenth wrong", 0.05, 0.12), ("half wrong", 0.4, 0.55)):
        grams, labels = world.batch(task, 1000, rng)
        wrong = np.mean(
            [
                truth[row.tobytes()] != label
                for row, label in zip(grams.numpy(), labels.numpy(), strict=True)
            ]
        )
        assert lowest < wrong < highest
    for task in ("new intents", "new articles", "answer letters"):
        labels = set(world.batch(task, 200, rng)[1].tolist())
        assert not labels & old and max(labels) < CLASSES
