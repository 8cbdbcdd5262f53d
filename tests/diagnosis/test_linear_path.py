"""The path to the reference: scores at points built by hand; the model is restored."""

from __future__ import annotations

from pathlib import Path as File

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from moved import WORLD, adapted, eroded, start, untouched, weights
from riprap import Behavior
from riprap import evaluation as probing
from riprap.diagnosis._weight_sources import SafetensorsFolder
from riprap.diagnosis.evidence._linear_path import PathProfile, linear_path
from riprap.errors import ConfigError
from tiny import PROMPTS, make_llama, make_tokenizer, token


def opening() -> Behavior:
    return Behavior.response_prefix(
        "opens", make_tokenizer(), PROMPTS, [token("sorry"), token("sure"), token("i")]
    )


def mixed(here: nn.Module, there: nn.Module, share: float, only: str = "") -> nn.Module:
    """The interpolation written out, in a model of its own."""
    model = start()
    own, other = weights(here), weights(there)
    with torch.no_grad():
        for name, part in model.named_parameters():
            moved = share if only in name else 0.0
            mean = (1 - moved) * own[name].double() + moved * other[name].double()
            part.copy_(mean.float())
    return model


@pytest.mark.parametrize("only", ["", "layers.1."])
def test_points_are_those_of_a_model_built_there(only: str) -> None:
    model, reference = eroded(), start()
    found = linear_path(
        model, reference, WORLD.behaviors(), points=5, name_filter=lambda name: only in name
    )
    for behavior in WORLD.behaviors():
        along = found.behaviors[behavior.name]
        for at, share in enumerate([0, 0.25, 0.5, 0.75, 1]):
            margins = probing.evaluate(behavior, mixed(model, reference, share, only)).margins
            assert along.alphas[at] == share
            np.testing.assert_allclose(along.margins[at], margins.mean(), rtol=1e-4, atol=1e-4)
            assert along.scores[at] == pytest.approx((margins > 0).mean(), abs=1 / len(margins))


def test_the_score_returns_on_the_path() -> None:
    found = linear_path(eroded(), weights(start()), WORLD.behaviors(), points=11)
    along = found.behaviors["A"]
    assert along.scores[0] < 0.9 <= along.scores[-1]
    first = found.first_at_floor("A")
    assert first is not None
    assert 0 < first < 1
    at = round(first * 10)
    assert along.scores[at] >= 0.9 > along.scores[:at].max()
    assert found.first_at_floor("A", 0.0) == 0.0
    assert found.first_at_floor("A", 1.01) is None


def test_the_model_is_restored(tmp_path: File) -> None:
    model, reference = eroded(), start()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    seen: list[tuple[int, int]] = []
    for there, home in ((reference, None), (weights(reference), SafetensorsFolder(tmp_path))):
        with untouched(model):
            linear_path(
                *(model, there, WORLD.behaviors()),
                points=3,
                weights_on_disk=home,
                progress=lambda done, total: seen.append((done, total)),
            )
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


def test_an_error_restores_the_model() -> None:
    model = eroded()

    def fails(_model: nn.Module, _probes: object) -> torch.Tensor:
        raise RuntimeError("no")

    with untouched(model), pytest.raises(RuntimeError, match="no"):
        linear_path(model, start(), [Behavior("fails", [1], fails)])


def test_the_scale_of_an_adapter_leads_to_its_base() -> None:
    model, behavior = adapted(use_rslora=True), opening()
    with untouched(model):
        along = linear_path(model, None, [behavior], points=3).behaviors["opens"]
    base, half = make_llama(), adapted(use_rslora=True)
    with torch.no_grad():
        for name, part in half.named_parameters():
            if "lora_B" in name:
                part.mul_(0.5)
    ends = [probing.evaluate(behavior, at).margins.mean() for at in (model, half, base)]
    np.testing.assert_allclose(along.margins, ends, rtol=1e-6)
    assert abs(ends[0] - ends[2]) > 0.1
    with model.disable_adapter():
        assert along.margins[2] == probing.evaluate(behavior, model).margins.mean()  # to the bit


def test_only_some_adapters_are_scaled() -> None:
    model, behavior = adapted(), opening()
    found = linear_path(
        model, None, [behavior], points=2, name_filter=lambda name: "layers.0." in name
    )
    without = adapted()
    with torch.no_grad():
        for name, part in without.named_parameters():
            if "lora_B" in name and "layers.0." in name:
                part.zero_()
    expected = probing.evaluate(behavior, without).margins.mean()
    assert found.behaviors["opens"].margins[1] == pytest.approx(expected, rel=1e-6)


def dora() -> nn.Module:
    return adapted(use_dora=True)


def whole_head() -> nn.Module:
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    return get_peft_model(make_llama(), LoraConfig(r=2, **options))


def merged() -> nn.Module:
    model = adapted()
    model.merge_adapter()
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (dora, "DoRA"),
        (whole_head, "trained in full"),
        (merged, "unmerge"),
        (make_llama, "no adapter"),
    ],
)
def test_what_a_scale_does_not_undo_is_refused(make: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        linear_path(make(), None, [opening()])  # type: ignore[operator]


def test_impossible_paths_raise() -> None:
    model = start()
    with pytest.raises(ConfigError, match="same model"):
        linear_path(model, make_llama(), WORLD.behaviors())
    with pytest.raises(ConfigError, match="accepts none"):
        linear_path(model, start(), WORLD.behaviors(), name_filter=lambda name: False)
    with pytest.raises(ConfigError, match="two points"):
        linear_path(model, start(), WORLD.behaviors(), points=1)
    with pytest.raises(ConfigError, match="different names"):
        linear_path(model, start(), WORLD.behaviors()[:1] * 2)


def test_barriers_by_hand() -> None:
    shares = np.linspace(0, 1, 5)
    along = PathProfile(
        shares, np.array([0.8, 0.9, 0.5, 0.9, 1.0]), np.array([2, 1, -1, 0, 4.0]), 0.9
    )
    assert along.barrier == pytest.approx(0.9 - 0.5)
    assert along.dip == pytest.approx(0.8 - 0.5)
    assert along.margin_barrier == pytest.approx(3 - -1)
    assert along.margin_dip == pytest.approx(2 + 1)
    straight = PathProfile(shares, np.linspace(0, 1, 5), np.linspace(1, 0, 5), 0.9)
    assert straight.barrier == straight.margin_barrier == pytest.approx(0)
    assert straight.dip == straight.margin_dip == 0


def test_a_model_with_its_units_in_another_order_lies_behind_a_barrier() -> None:
    model, other = start(), start()
    with torch.no_grad():
        for block in other.model.layers:  # type: ignore[union-attr]
            order = torch.arange(127, -1, -1)
            for name in ("gate_proj", "up_proj"):
                part = getattr(block.mlp, name).weight
                part.copy_(part[order])
            block.mlp.down_proj.weight.copy_(block.mlp.down_proj.weight[:, order])
    along = linear_path(model, other, WORLD.behaviors(), points=5).behaviors["A"]
    assert along.scores[0] == along.scores[-1] == 1
    assert along.barrier == along.dip > 0.2
    assert along.margin_dip > 1
