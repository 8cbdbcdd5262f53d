"""Results of a pass over probes: margins, gradients, activations and logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from riprap import Behavior, evaluation
from riprap.errors import BehaviorError
from tiny import Bigram, PlainLM, make_llama

IDS = torch.tensor([[3, 7, 9, 12], [3, 8, 10, 4], [5, 6, 7, 8]])
TARGETS = torch.tensor([9, 11, 30])


def trainable(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_margin_gradient_agrees_with_finite_differences() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    inputs = torch.randn(6, 3, dtype=torch.float64)
    behavior = Behavior("smooth", inputs, margins=lambda m, x: m(x).squeeze(-1))
    gradient = evaluation.evaluate(behavior, model, trainable(model)).gradient
    assert gradient is not None
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), gradient, strict=True):
            for index in np.ndindex(*parameter.shape):
                kept, nudge = float(parameter[index]), 1e-6
                parameter[index] = kept + nudge
                above = float(model(inputs).mean())
                parameter[index] = kept - nudge
                below = float(model(inputs).mean())
                parameter[index] = kept
                assert float(part[index]) == pytest.approx((above - below) / 2e-6, abs=1e-8)


def test_margin_gradient_of_a_language_model_agrees_with_torch_func() -> None:
    model = make_llama(attn_implementation="eager").eval()
    behavior = Behavior.next_token("words", IDS, TARGETS)
    gradient = evaluation.evaluate(behavior, model, trainable(model)).gradient
    state = {name: value.detach() for name, value in model.named_parameters()}

    def mean_margin(weights: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(model, weights, (IDS,)).logits[:, -1]
        mine = torch.eye(logits.shape[1], dtype=torch.bool)[TARGETS]
        return (logits[mine] - logits.masked_fill(mine, -1e9).amax(1)).mean()

    expected = torch.func.grad(mean_margin)(state)
    assert gradient is not None
    for part, name in zip(gradient, expected, strict=True):
        torch.testing.assert_close(part, expected[name], rtol=1e-4, atol=1e-5)


def test_gradient_is_zero_in_parameters_that_the_margin_does_not_use() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    behavior = Behavior("half", torch.ones(3, 2), lambda m, x: m["used"](x).squeeze(-1))
    gradient = evaluation.evaluate(behavior, model, trainable(model)).gradient
    assert gradient is not None
    assert [bool(part.any()) for part in gradient] == [True, True, False, False]


def test_no_gradient_if_not_requested_or_the_margin_is_detached() -> None:
    model = PlainLM()
    attached = Behavior.next_token("words", IDS, TARGETS)
    detached = Behavior("cut", IDS, lambda m, x: m(x)[:, -1, 0].detach())
    assert evaluation.evaluate(attached, model).gradient is None
    assert evaluation.evaluate(detached, model, trainable(model)).gradient is None


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_gradients_are_computed_inside_no_grad_and_inference_mode(guard: type) -> None:
    model = PlainLM()
    behavior = Behavior.next_token("words", IDS, TARGETS)
    outside = evaluation.evaluate(behavior, model, trainable(model))
    with guard():
        inside = evaluation.evaluate(behavior, model, trainable(model))
    assert outside.gradient is not None
    assert inside.gradient is not None
    assert all(torch.equal(*pair) for pair in zip(outside.gradient, inside.gradient, strict=True))


def losses_by_hand(model: nn.Module) -> list[Tensor]:
    return [
        -model(IDS[row : row + 1])[0, -1].log_softmax(-1)[TARGETS[row]] for row in range(len(IDS))
    ]


def test_loss_gradient_agrees_with_a_backward_pass() -> None:
    model = PlainLM()
    found = evaluation.loss_gradient(
        Behavior.next_token("w", IDS, TARGETS), model, trainable(model)
    )
    torch.stack(losses_by_hand(model)).mean().backward()
    assert found is not None
    for part, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(part, parameter.grad, rtol=1e-4, atol=1e-6)


def test_fisher_diagonal_agrees_with_a_loop_over_examples() -> None:
    model = PlainLM()
    found = evaluation.fisher_diagonal(
        Behavior.next_token("w", IDS, TARGETS), model, trainable(model)
    )
    expected = [np.zeros(tuple(p.shape)) for p in model.parameters()]
    for loss in losses_by_hand(model):
        model.zero_grad()
        loss.backward()
        for total, parameter in zip(expected, model.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad.double().numpy() ** 2 / len(IDS)
    assert found is not None
    for part, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(part.numpy(), reference, rtol=1e-3, atol=1e-9)


def test_a_behavior_without_losses_has_neither() -> None:
    behavior = Behavior("bare", IDS, lambda m, x: m(x)[:, -1, 0])
    model = PlainLM()
    assert evaluation.loss_gradient(behavior, model, trainable(model)) is None
    assert evaluation.fisher_diagonal(behavior, model, trainable(model)) is None


def test_activations_and_logits_are_those_of_the_last_position() -> None:
    model = PlainLM()
    seen: list[Tensor] = []
    handle = model.blocks[1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    result = evaluation.evaluate(Behavior.next_token("w", IDS, TARGETS), model, layers=["blocks.1"])
    handle.remove()
    assert torch.equal(result.activations["blocks.1"], seen[0][:, -1])
    assert result.logits is not None
    torch.testing.assert_close(result.logits, model(IDS)[:, -1].detach())


def test_a_margin_may_call_the_model_probe_by_probe() -> None:
    model = PlainLM()
    behavior = Behavior("loop", IDS, lambda m, x: torch.stack([m(r[None])[0, -1, 0] for r in x]))
    result = evaluation.evaluate(behavior, model, layers=["blocks.1"])
    assert result.activations["blocks.1"].shape == (3, 12)
    assert result.logits is not None
    torch.testing.assert_close(result.logits, model(IDS)[:, -1].detach())


class Scalar(nn.Module):
    """Model whose forward returns a loss, not logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)])

    def forward(self, picture: Tensor) -> Tensor:
        for layer in self.layers:
            picture = layer(picture)
        return picture.square().mean()


def test_a_model_without_logits_is_evaluated_by_its_margins() -> None:
    model, pictures = Scalar(), torch.randn(3, 1, 8, 8)
    behavior = Behavior(
        "low", pictures, lambda m, batch: torch.stack([1 - m(one[None]) for one in batch])
    )
    result = evaluation.evaluate(behavior, model, trainable(model), ["layers.1"])
    expected = [1 - model(one[None]).item() for one in pictures]
    np.testing.assert_allclose(result.margins, expected, rtol=1e-5)
    assert result.gradient is not None
    assert result.logits is None
    assert result.activations == {}


@pytest.mark.parametrize(
    ("margins", "shape"),
    [
        (lambda m, x: m(x)[:, -1], r"\(3, 50\)"),
        (lambda m, x: m(x)[:, -1, 0].mean(), r"\(\)"),
        (lambda m, x: m(x[:0])[:, -1, 0], r"\(0,\)"),
        (lambda m, x: [1.0, 2.0], "list"),
    ],
)
def test_margins_of_a_wrong_shape_are_refused(margins: object, shape: str) -> None:
    behavior = Behavior("odd", IDS, margins)
    with pytest.raises(BehaviorError, match=rf"behavior 'odd': .*returned {shape}.*n_probes"):
        evaluation.evaluate(behavior, PlainLM(size=50))


def test_find_layer_returns_the_middle_of_a_transformer() -> None:
    llama = make_llama()
    assert evaluation.find_layer(llama) == "model.layers.1"
    adapted = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"]))
    assert evaluation.find_layer(adapted) == "base_model.model.model.layers.1"
    assert evaluation.find_layer(PlainLM()) == "blocks.1"


def test_find_layer_ignores_lists_inside_a_layer() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Experts() for _ in range(4))

    assert evaluation.find_layer(Mixture()) == "layers.2"


def test_find_layer_finds_none_in_a_model_without_a_stack(small_net: nn.Module) -> None:
    assert evaluation.find_layer(small_net) is None
    assert evaluation.find_layer(Bigram()) is None


def test_find_layer_by_name_and_by_suffix() -> None:
    adapted = get_peft_model(make_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert evaluation.find_layer(adapted, "layers.2") == "base_model.model.model.layers.2"
    assert evaluation.find_layer(PlainLM(), "head") == "head"


@pytest.mark.parametrize(("name", "count"), [("mlp", 3), ("layers.9", 0)])
def test_find_layer_refuses_a_name_of_no_or_several_modules(name: str, count: int) -> None:
    with pytest.raises(
        BehaviorError, match=f"layer '{name}' matches {count} modules.*named_modules"
    ):
        evaluation.find_layer(make_llama(), name)
