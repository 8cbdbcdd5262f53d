"""Heads and neurons: effect of ablation, importance, and parameter masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.diagnosis.geometry._components import (
    HEAD,
    NEURON,
    Component,
    component_importance,
    find_components,
    mean_ablation,
    parameter_masks,
)
from riprap.errors import BehaviorError, ConfigError
from tests.tiny import make_gpt2, make_llama

IDS = torch.tensor([[7, 8, 9, 10], [7, 11, 9, 12], [7, 13, 9, 14], [7, 15, 9, 16]])
HALF = 8  # width of a head: 16 over two


def behavior() -> Behavior:
    return Behavior.next_token("b", IDS, torch.tensor([20, 21, 22, 23]))


def writer_of(model: nn.Module, unit: Component) -> nn.Linear:
    found = model.get_submodule(unit.output_proj)
    assert isinstance(found, nn.Linear)
    return found


def test_every_head_and_neuron_once() -> None:
    found = find_components(make_llama())
    assert [u.kind for u in found].count(HEAD) == 3 * 2
    assert [u.kind for u in found].count(NEURON) == 3 * 24
    assert len(set(found)) == len(found)
    assert found[1] == Component(HEAD, 1, "model.layers.0.self_attn.o_proj", (HALF, 2 * HALF))


def test_ablation_puts_the_mean_over_rows_in_place_of_what_a_unit_says() -> None:
    model = make_llama().double()
    head = find_components(model)[1]
    writer = writer_of(model, head)
    seen: list[torch.Tensor] = []
    writer.register_forward_hook(lambda _m, inputs, out: seen.extend([inputs[0], out]))
    with torch.no_grad():
        model(IDS)
        with mean_ablation(model, [head]):
            model(IDS)
    before, _, _, after = seen  # a hook of ours sees the inputs as the layer does
    expected = before.clone()
    for place in range(IDS.shape[1]):
        mean = sum(before[row, place, HALF:] for row in range(len(IDS))) / len(IDS)
        expected[:, place, HALF:] = mean
    torch.testing.assert_close(after, expected @ writer.weight.T)
    assert not torch.allclose(expected, before)


def test_afterwards_the_model_is_as_before() -> None:
    model = make_llama()
    before = probing.evaluate(behavior(), model).margins
    component_importance(model, behavior(), find_components(model)[:4])
    assert (probing.evaluate(behavior(), model).margins == before).all()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_importance_finds_a_planted_unit() -> None:
    """Silence every writer but one neuron's column: nothing else can matter, and it does."""
    model = make_llama()
    every = find_components(model)
    planted = next(u for u in every if u.kind == NEURON and u.index == 5)
    with torch.no_grad():
        for unit in every:
            if unit != planted:
                writer_of(model, unit).weight[:, slice(*unit.columns)] = 0
        writer_of(model, planted).weight.mul_(30)
    fall = component_importance(model, behavior(), every)
    place = every.index(planted)
    others = [abs(value) for i, value in enumerate(fall) if i != place]
    assert abs(fall[place]) > 0.1
    assert max(others) == 0


def test_importance_is_the_fall_of_the_mean_margin_and_says_how_far_it_is() -> None:
    model, told = make_llama(), []
    some = find_components(model)[:2]
    fall = component_importance(model, behavior(), some, progress=lambda *at: told.append(at))
    with mean_ablation(model, some[:1]):
        left = probing.evaluate(behavior(), model).margins.mean()
    assert fall[0] == probing.evaluate(behavior(), model).margins.mean() - left
    assert told == [(1, 2), (2, 2)]


def test_a_single_row_is_its_own_mean() -> None:
    model = make_llama()
    with (
        mean_ablation(model, find_components(model)[:1]),
        pytest.raises(BehaviorError, match="two rows"),
    ):
        model(IDS[:1])


@pytest.mark.parametrize("kind", [HEAD, NEURON])
def test_without_its_parameters_a_unit_says_nothing_and_the_others_go_on(kind: str) -> None:
    model = make_llama()
    every = [u for u in find_components(model) if u.kind == kind]
    unit, writer = every[1], writer_of(model, every[1])
    masks = parameter_masks(model, [unit])
    readers = {HEAD: {"q_proj", "k_proj", "v_proj"}, NEURON: {"gate_proj", "up_proj"}}[kind]
    assert {name.split(".")[-2] for name in masks} == readers | {unit.output_proj.split(".")[-1]}
    seen: list[torch.Tensor] = []
    writer.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        model(IDS)
        for name, part in model.named_parameters():
            if name in masks:
                part[masks[name]] = 0
        model(IDS)
    own = slice(*unit.columns)
    assert (seen[1][..., own] == 0).all()
    assert (writer.weight[:, own] == 0).all()
    rest = [i for i in range(seen[0].shape[-1]) if not own.start <= i < own.stop]
    assert torch.equal(seen[0][..., rest], seen[1][..., rest])


def test_all_units_of_a_layer_own_all_of_it_but_what_is_shared() -> None:
    model = make_llama()
    masks = parameter_masks(model, find_components(model))
    assert all(mask.all() for mask in masks.values())
    assert len(masks) == 3 * 7


def test_a_model_without_such_layers_raises() -> None:
    with pytest.raises(BehaviorError, match="o_proj"):
        find_components(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(BehaviorError, match="o_proj"):
        find_components(make_gpt2())
    with pytest.raises(ConfigError, match="no layer"):
        parameter_masks(make_llama(), [Component(HEAD, 0, "nowhere.o_proj", (0, 1))])
