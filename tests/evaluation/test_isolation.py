"""A pass over probes leaves training as it was, also when the pass fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from riprap import Behavior, evaluation
from tiny import Classifier, make_llama

INPUTS = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


class Tracker(nn.Module):
    """Model that changes its buffers in every forward pass, in all ways that models use."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("hidden_write", torch.zeros(8))
        self.register_buffer("replaced", torch.zeros(8))
        self.register_buffer("empty", None)
        self.register_buffer("unset", torch.ones(2))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.hidden_write.data.add_(inputs.detach().mean(0))
        self.replaced = inputs.detach().mean(0)
        self.empty = torch.ones(3)
        self.unset = None
        self.register_buffer("new", torch.ones(1))
        return self.linear(inputs)


class Whole(nn.Module):
    """Model with batch statistics, dropout and changing buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()
        self.tracker = Tracker()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(inputs) + self.tracker(inputs)


def quiet_margins(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs)[:, 0] + torch.rand(5) + random.random() + np.random.rand()


def rude_margins(model: nn.Module, inputs: Tensor) -> Tensor:
    """Margin function with every side effect that still returns margins."""
    with torch.enable_grad():
        model.train()
        model.requires_grad_(False)
        model.requires_grad_(True)
        values = model(inputs)[:, 0] + torch.rand(5) + random.random() + np.random.rand()
        (model(inputs).sum() * 3).backward()
        return values


def failing_margins(model: nn.Module, inputs: Tensor) -> Tensor:
    rude_margins(model, inputs)
    raise RuntimeError("no margins today")


def prepared() -> Whole:
    """Return a model during training: mixed modes, gradients on some parameters, one frozen."""
    model = Whole().train()
    model.tracker.eval()
    model.classifier.layers[3].eval()
    model(INPUTS).square().mean().backward()
    model.tracker.linear.bias.requires_grad_(False)
    model.tracker.linear.weight.grad = None
    tracker = model.tracker
    tracker.empty, tracker.unset = None, torch.ones(2)
    del tracker._buffers["new"]
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    grads = {n: p.grad for n, p in model.named_parameters()}
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "requires": {name: p.requires_grad for name, p in model.named_parameters()},
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "grads": grads,
        "grad values": {n: None if g is None else g.clone() for n, g in grads.items()},
        "buffers": {
            f"{name}.{own}": buffer
            for name, module in model.named_modules()
            for own, buffer in module._buffers.items()
        },
        "buffer values": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "state keys": list(model.state_dict()),
        "grad enabled": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return bool((one == two).all())
    return bool(one == two)


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    for part, kept in before.items():
        found = after[part]
        if part in ("grads", "buffers"):
            assert {n: id(v) for n, v in kept.items()} == {n: id(v) for n, v in found.items()}, part
        elif isinstance(kept, dict):
            assert kept.keys() == found.keys(), part
            assert [n for n in kept if not same(kept[n], found[n])] == [], part
        else:
            assert same(kept, found), part


def passes(model: nn.Module) -> dict[str, Callable[[Behavior], Any]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return {
        "forward": lambda b: evaluation.evaluate(b, model),
        "gradient": lambda b: evaluation.evaluate(b, model, parameters, ["tracker.linear"]),
        "loss": lambda b: evaluation.loss_gradient(b, model, parameters),
        "fisher": lambda b: evaluation.fisher_diagonal(b, model, parameters),
        "calibrate": lambda b: evaluation.calibrate(b, model),
    }


@pytest.mark.parametrize("kind", ["forward", "gradient", "loss", "fisher", "calibrate"])
@pytest.mark.parametrize("margins", [quiet_margins, rude_margins, failing_margins])
def test_a_pass_preserves_the_training_state(kind: str, margins: Callable[..., Tensor]) -> None:
    model = prepared()
    behavior = Behavior("rude", INPUTS, margins, losses=margins, calibrate=margins)
    run = passes(model)[kind]
    before = snapshot(model)
    fails = margins is failing_margins
    with pytest.raises(RuntimeError, match="no margins today") if fails else nullcontext():
        run(behavior)
    assert_unchanged(before, snapshot(model))


def test_the_margins_have_side_effects_outside_a_pass() -> None:
    """Outside a pass the same margins have every side effect that the test above checks."""
    model = prepared()
    before = snapshot(model)
    rude_margins(model, INPUTS)
    after = snapshot(model)
    for part in before.keys() - {"weights", "grad enabled", "autocast"}:
        with pytest.raises(AssertionError):
            assert_unchanged({part: before[part]}, {part: after[part]})


def test_hooks_of_training_are_not_called() -> None:
    model, fired = prepared(), []
    for parameter in model.classifier.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: fired.append("accumulated"))
        parameter.register_hook(lambda gradient: fired.append("gradient") or gradient * 0)
    behavior = Behavior("quiet", INPUTS, quiet_margins, losses=quiet_margins)
    result = passes(model)["gradient"](behavior)
    passes(model)["fisher"](behavior)
    assert fired == []
    assert any(bool(part.any()) for part in result.gradient)
    model(INPUTS).sum().backward()
    assert {"accumulated", "gradient"} <= set(fired)


def test_a_pass_runs_in_evaluation_mode() -> None:
    model = Classifier().train()
    model(torch.randn(64, 8))  # statistics that differ from those of the probes
    behavior = Behavior("still", INPUTS, lambda m, x: m(x)[:, 0])
    result = evaluation.evaluate(behavior, model)
    assert model.training
    expected = model.eval()(INPUTS)[:, 0].detach().numpy()
    np.testing.assert_allclose(result.margins, expected, rtol=1e-6)


def test_gradient_checkpointing_stays_on_and_the_cache_setting_untouched() -> None:
    model = make_llama().train()
    model.activation_checkpointing_enable()
    model.config.use_cache = True
    behavior = Behavior.next_token("words", [[3, 7, 9]], [4])
    result = evaluation.evaluate(behavior, model, list(model.parameters()))
    assert result.gradient is not None
    assert model.is_activation_checkpointing
    assert model.training
    assert model.config.use_cache is True


def test_an_adapter_that_a_margin_disables_is_restored() -> None:
    model = get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    frozen = [p for n, p in model.named_parameters() if "layers.0" in n and "lora_A" in n]
    frozen[0].requires_grad_(False)
    ids = torch.tensor([[3, 7, 9]])

    def against_base(model: Any, probes: Tensor) -> Tensor:
        with torch.no_grad(), model.disable_adapter():
            base = model(probes).logits[:, -1, 4]
        return model(probes).logits[:, -1, 4] - base

    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    evaluation.evaluate(
        Behavior("own", ids, against_base),
        model,
        [p for p in model.parameters() if p.requires_grad],
    )
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
