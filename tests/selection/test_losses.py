"""The loop's own loss: which rows it weighs, and which losses are no weighted mean of the rows'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riprap.errors import ConfigError
from riprap.selection import Selector
from selection.cases import batch
from selection.test_loops import close, flat, sgd, training


class Bare(nn.Module):
    """Inputs in, a bare tensor of logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


@pytest.mark.parametrize("strategy", ["high", "moderate_by_loss"])
@pytest.mark.parametrize("room", [2**31, 0])
def test_a_loss_outside_of_the_model(
    strategy: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riprap.selection._loop_hooks.MAX_KEPT_BYTES", room)
    torch.manual_seed(0)
    model, made = Bare().double(), torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 6, generator=made, dtype=torch.float64)
    target = inputs.sum(1).abs().long().clamp(max=3)  # known from the inputs, as `losses` needs

    def losses(output: Tensor, given: Any) -> Tensor:
        own = given["inputs"].sum(1).abs().long().clamp(max=3)
        return nn.functional.cross_entropy(output, own, reduction="none")

    selector = Selector(strategy, 0.3)
    with selector.attach(model, sgd(model), losses=losses):
        nn.functional.cross_entropy(model(inputs), target).backward()
        found = flat(model)
    model.zero_grad()
    rows = selector.history[0].rows
    assert len(rows) == 3
    nn.functional.cross_entropy(model(inputs[rows]), target[rows]).backward()
    assert close(found, flat(model), 1e-10)


@pytest.mark.parametrize("strategy", ["high", "random"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", ["batch", "rows"])
def test_the_scale_of_the_step(strategy: str, reduction: str, scale: str) -> None:
    """By default the rows stand for the batch; or each keeps the weight that the loss gives it."""
    torch.manual_seed(0)
    model, made = Bare().double(), torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 6, generator=made, dtype=torch.float64)
    target = inputs.sum(1).abs().long().clamp(max=3)

    def losses(output: Tensor, given: Any) -> Tensor:
        own = given["inputs"].sum(1).abs().long().clamp(max=3)
        return nn.functional.cross_entropy(output, own, reduction="none")

    selector = Selector(strategy, 0.3, scale=scale)
    with selector.attach(model, sgd(model), losses=losses):
        nn.functional.cross_entropy(model(inputs), target, reduction=reduction).backward()
        found = flat(model)
    model.zero_grad()
    rows = selector.history[0].rows
    nn.functional.cross_entropy(model(inputs[rows]), target[rows], reduction=reduction).backward()
    ratio = {("mean", "batch"): 1, ("mean", "rows"): 0.3, ("sum", "batch"): 10 / 3}
    assert close(found, flat(model) * ratio.get((reduction, scale), 1), 1e-10)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose 'batch' or 'rows'"):
        Selector(scale="loss")


class Labeled(nn.Module):
    """Logits, and targets that `own` reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.linear(inputs)


def own(output: Tensor, given: Any) -> Tensor:
    return nn.functional.cross_entropy(output, given["targets"], reduction="none")


def weighted(strategy: str, weights: Tensor) -> tuple[Selector, nn.Module]:
    torch.manual_seed(0)
    model, inputs = Labeled(), torch.randn(8, 6)
    targets = torch.randint(4, (8,))
    selector = Selector(strategy, 0.25)
    with selector.attach(model, sgd(model), losses=own):
        (own(model(inputs, targets), {"targets": targets}) * weights).sum().backward()
    return selector, model


@pytest.mark.parametrize("strategy", ["low", "moderate", "moderate_by_loss", "random"])
def test_rows_that_the_loops_loss_leaves_out_are_never_taken(strategy: str) -> None:
    selector, model = weighted(strategy, torch.tensor([0.0, 0, 1, 0, 0, 0, 1, 1]))
    assert set(selector.history[0].rows) <= {2, 6, 7}
    assert flat(model).isfinite().all()
    assert flat(model).norm() > 0


def test_a_loss_that_raises_some_rows_losses_is_refused() -> None:
    with pytest.raises(ConfigError, match="raises those of others"):
        weighted("high", torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1]))


def test_a_loss_that_is_not_the_rows_own_is_refused() -> None:
    model, given = training("lora"), batch()
    with (
        Selector("high").attach(model, sgd(model), losses=lambda out, _: out.logits[:, 0, 0]),
        pytest.raises(ConfigError, match="weighted mean"),
    ):
        model(**given).loss.backward()


@pytest.mark.parametrize("strategy", ["high", "proxy", "random"])
@pytest.mark.parametrize("room", [2**31, 0])
def test_a_second_loss_beside_the_models_own_is_refused(
    strategy: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be lost, or count for rows that were not taken."""
    monkeypatch.setattr("riprap.selection._loop_hooks.MAX_KEPT_BYTES", room)
    model = training("lora")
    with (
        Selector(strategy, 0.4).attach(model, sgd(model)),
        pytest.raises(ConfigError, match="weighted mean"),
    ):
        output = model(**batch())
        (output.loss + 1e-2 * output.logits.logsumexp(-1).square().mean()).backward()


def test_losses_that_are_not_known_are_asked_for() -> None:
    model = Bare()
    with (
        Selector("high").attach(model, sgd(model)),
        pytest.raises(ConfigError, match="give losses="),
    ):
        model(torch.randn(4, 6))
