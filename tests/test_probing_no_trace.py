"""After a pass over probes everything is as it was, also when the pass fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import Classifier, make_llama
from torch import Tensor, nn

from riprap import Behavior, probing

INPUTS = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


class Tracker(nn.Module):
    """Writes its buffers in every forward pass, in each of the ways that models do."""

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
    """Batch statistics, dropout and tracked buffers, with some parts frozen in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()
        self.tracker = Tracker()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(inputs) + self.tracker(inputs)


def greedy_margins(model: nn.Module, inputs: Tensor) -> Tensor:
    """As rude as a margin function can be, and still return margins."""
    model.train()
    noise = random.random() + np.random.rand() + torch.rand(()).item()
    values = model(inputs)[:, 0] + noise
    model.requires_grad_(False)
    model.requires_grad_(True)
    (model(inputs).sum() * 3).backward()
    return values


def failing_margins(model: nn.Module, inputs: Tensor) -> Tensor:
    greedy_margins(model, inputs)
    raise RuntimeError("no margins today")


def prepared() -> Whole:
    """A model in the middle of training: mixed modes, gradients on some parameters, one frozen."""
    model = Whole().train()
    model.tracker.eval()
    model.classifier.layers[3].eval()
    model(INPUTS).square().mean().backward()
    model.tracker.linear.bias.requires_grad_(False)
    model.tracker.linear.weight.grad = None
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


def assert_no_trace(before: dict[str, Any], after: dict[str, Any]) -> None:
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
        "forward": lambda b: probing.look(b, model),
        "gradient": lambda b: probing.look(b, model, parameters, ["tracker.linear"]),
        "loss": lambda b: probing.loss_gradient(b, model, parameters),
        "fisher": lambda b: probing.fisher_diagonal(b, model, parameters),
        "start": lambda b: probing.start(b, model),
    }


def quiet_margins(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs)[:, 0] + torch.rand(5) + random.random() + np.random.rand()


@pytest.mark.parametrize("kind", ["forward", "gradient", "loss", "fisher", "start"])
@pytest.mark.parametrize("margins", [quiet_margins, greedy_margins, failing_margins])
def test_a_pass_leaves_no_trace(kind: str, margins: Callable[..., Tensor]) -> None:
    if kind in ("forward", "start") and margins is not quiet_margins:
        greedy = margins

        def margins(model: nn.Module, inputs: Tensor) -> Tensor:
            with torch.enable_grad():
                return greedy(model, inputs)

    model = prepared()
    behavior = Behavior("rude", INPUTS, margins, losses=margins, start=margins)
    run = passes(model)[kind]
    before = snapshot(model)
    if margins is failing_margins or kind in ("forward", "start") and "greedy" in locals():
        with pytest.raises(RuntimeError, match="today") if greedy_fails(locals()) else nothing():
            run(behavior)
    else:
        run(behavior)
    assert_no_trace(before, snapshot(model))
