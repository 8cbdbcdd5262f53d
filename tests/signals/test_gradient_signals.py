"""Gradient signals around real optimizer steps, against float64 sums over backward passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import Behavior
from riprap.signals import (
    FisherCosine,
    Interference,
    LossCosine,
    MarginCosine,
    Norms,
    Signal,
)
from riprap.signals.gradients._fisher import fisher_cosine
from tiny import PROMPTS, make_llama, make_tokenizer
from views import gradient_view, probe_view, trainable, update_view, values

CHAT = make_tokenizer()
IDS, TARGETS = torch.tensor([[3, 7, 9, 12], [3, 8, 10, 4], [5, 6, 7, 8]]), [9, 11, 30]
TASK = torch.randint(3, 47, (6, 9), generator=torch.Generator().manual_seed(11))


def watched() -> list[Behavior]:
    refusal = Behavior.response_prefix("refusal", CHAT, PROMPTS, ["sorry", "no"])
    bare = Behavior("bare", IDS, lambda m, ids: m(ids).logits[:, -1, 5] / 3)
    return [Behavior.next_token("words", IDS, TARGETS), refusal, bare]


def flat(parts: list[Tensor]) -> np.ndarray:
    return np.concatenate([part.detach().double().numpy().ravel() for part in parts])


def gradient(model: nn.Module, value: Tensor) -> np.ndarray:
    model.zero_grad()
    value.backward()
    found = flat([p.grad if p.grad is not None else 0 * p for p in model.parameters()])
    model.zero_grad()
    return found


def margin_gradient(model: nn.Module, behavior: Behavior) -> np.ndarray:
    return gradient(model, behavior.margins(model, behavior.probes).mean())


def loss_gradient(model: nn.Module, behavior: Behavior) -> np.ndarray:
    assert behavior.losses is not None
    return gradient(model, behavior.losses(model, behavior.probes).mean())


class Step:
    """One AdamW step on a task, and what surrounds it."""

    def __init__(self, signal: Signal) -> None:
        self.model = make_llama(scale=5.0).eval()
        self.behaviors = {behavior.name: behavior for behavior in watched()}
        view = probe_view(0, watched(), self.model)
        signal.start(view)
        self.at_start = signal.on_probe_evaluation(view)
        self.h = {n: margin_gradient(self.model, b) for n, b in self.behaviors.items()}
        self.g_b = {n: loss_gradient(self.model, b) for n, b in self.behaviors.items() if b.losses}
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=0.1)
        logits = self.model(TASK[:, :-1]).logits
        functional.cross_entropy(logits.flatten(0, 1), TASK[:, 1:].flatten()).backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.g = flat(grads)
        self.readings = signal.on_gradient(gradient_view(1, view.protected_gradients, grads))
        old = [p.detach().clone() for p in self.model.parameters()]
        optimizer.step()
        update = [p.detach() - o for p, o in zip(self.model.parameters(), old, strict=True)]
        self.delta = flat(list(self.model.parameters())) - flat(old)
        self.readings += signal.on_update(update_view(1, view.protected_gradients, update))


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / (np.linalg.norm(one) * np.linalg.norm(two)))


def test_interference_is_the_product_of_margin_gradient_and_update() -> None:
    step = Step(Interference())
    found = values(step.readings, "interference")
    assert found.keys() == {"words", "refusal", "bare"}
    for name, value in found.items():
        assert value == pytest.approx(step.h[name] @ step.delta, rel=1e-3, abs=1e-6)
        assert abs(value) > 1e-4
    assert {r.step for r in step.readings} == {1}


def test_interference_predicts_the_change_of_the_mean_margin() -> None:
    """To first order: the smaller the step, the better."""
    model = make_llama(scale=5.0).eval()
    signal, behavior = Interference(), watched()[0]
    view = probe_view(0, [behavior], model)
    errors = []
    for size in (1e-2, 3e-4):
        torch.manual_seed(4)
        update = [size * torch.randn_like(p) for p in trainable(model)]
        predicted = values(
            signal.on_update(update_view(1, view.protected_gradients, update)), "interference"
        )["words"]
        with torch.no_grad():
            was = behavior.margins(model, behavior.probes).mean()
            for parameter, part in zip(model.parameters(), update, strict=True):
                parameter += part
            realised = float(behavior.margins(model, behavior.probes).mean() - was)
            for parameter, part in zip(model.parameters(), update, strict=True):
                parameter -= part
        errors.append(abs(predicted / realised - 1))
    assert errors[1] < 0.05
    assert errors[1] < errors[0]


def test_margin_cosine_is_positive_where_descending_the_task_helps() -> None:
    step = Step(MarginCosine())
    found = values(step.readings, "cosine_margin")
    for name, h in step.h.items():
        assert found[name] == pytest.approx(cosine(-step.g, h), rel=1e-3, abs=1e-5)


def test_loss_cosine() -> None:
    step = Step(LossCosine())
    found = values(step.readings, "cosine_loss")
    assert found.keys() == {"words", "refusal"}
    for name, g_b in step.g_b.items():
        assert found[name] == pytest.approx(cosine(step.g, g_b), rel=1e-3, abs=1e-5)


def test_fisher_cosine() -> None:
    step = Step(FisherCosine())
    found = values(step.readings, "cosine_fisher")
    assert found.keys() == {"words", "refusal"}
    start = make_llama(scale=5.0).eval()
    for name, g_b in step.g_b.items():
        behavior = step.behaviors[name]
        count = len(behavior.probes)
        fisher = np.zeros_like(g_b)
        for index in range(count):
            fisher += loss_gradient(start, behavior.subset([index])) ** 2 / count
        root = np.sqrt(fisher)
        assert found[name] == pytest.approx(cosine(root * step.g, root * g_b), rel=2e-3)


def test_norms() -> None:
    step = Step(Norms())
    assert values(step.readings, "norm_gradient")[""] == pytest.approx(
        np.linalg.norm(step.g), rel=1e-4
    )
    assert values(step.readings, "norm_update")[""] == pytest.approx(
        np.linalg.norm(step.delta), rel=1e-4
    )
    lengths, depths = (values(step.at_start, s) for s in ("norm_margin_gradient", "depth"))
    for name, h in step.h.items():
        assert lengths[name] == pytest.approx(np.linalg.norm(h), rel=1e-4)
    for name, g_b in step.g_b.items():
        assert depths[name] == pytest.approx(np.linalg.norm(g_b), rel=1e-4)


def test_depth_is_read_once_and_margin_gradients_where_they_are_fresh() -> None:
    model, signal = make_llama().eval(), Norms()
    view = probe_view(7, watched(), model)
    assert values(signal.on_probe_evaluation(view), "depth") == {}
    assert values(signal.on_probe_evaluation(view), "norm_margin_gradient").keys() == set(
        view.results
    )
    view.protected_gradients.step = 5
    assert values(signal.on_probe_evaluation(view), "norm_margin_gradient") == {}


@pytest.mark.parametrize(
    ("signal", "name", "missing"),
    [
        (Norms(), "depth", {"bare"}),
        (LossCosine(), "cosine_loss", {"bare"}),
        (FisherCosine(), "cosine_fisher", {"bare"}),
    ],
)
def test_a_behavior_without_losses_is_said_to_lack_them(
    signal: Signal, name: str, missing: set[str]
) -> None:
    stated = [r for r in Step(signal).at_start if r.signal == name and r.state == "NOT_RUN"]
    assert {r.behavior for r in stated} == missing
    assert all("Behavior(losses=...)" in r.detail for r in stated)


@pytest.mark.parametrize(
    ("signal", "name"),
    [
        (Interference(), "interference"),
        (MarginCosine(), "cosine_margin"),
        (Norms(), "norm_margin_gradient"),
    ],
)
def test_a_detached_margin_is_said_to_be_so(signal: Signal, name: str) -> None:
    model = make_llama().eval()
    cut = Behavior("cut", IDS, lambda m, ids: m(ids).logits[:, -1, 5].detach())
    view = probe_view(0, [cut, watched()[0]], model)
    stated = [
        r for r in signal.on_probe_evaluation(view) if r.signal == name and r.state == "NOT_RUN"
    ]
    assert [r.behavior for r in stated] == ["cut"]
    assert "detached" in stated[0].detail


def test_cosines_with_nothing_are_errors_not_zeros() -> None:
    model = make_llama().eval()
    view = probe_view(0, watched(), model)
    nothing = [torch.zeros_like(p) for p in trainable(model)]
    readings = MarginCosine().on_gradient(gradient_view(1, view.protected_gradients, nothing))
    assert {(r.state, r.value) for r in readings} == {("ERROR", None)}


def test_without_a_task_gradient_nothing_is_read() -> None:
    model = make_llama().eval()
    view = probe_view(0, watched(), model)
    for signal in (MarginCosine(), LossCosine(), FisherCosine(), Norms()):
        signal.start(view)
        assert signal.on_gradient(gradient_view(1, view.protected_gradients, None)) == []


def test_fisher_cosine_weighs_by_what_matters() -> None:
    task, protected = [torch.tensor([1.0, 1.0])], [torch.tensor([1.0, -1.0])]
    assert fisher_cosine(task, protected, [torch.tensor([1.0, 1.0])]) == pytest.approx(0)
    assert fisher_cosine(task, protected, [torch.tensor([1.0, 0.0])]) == pytest.approx(1)
    assert fisher_cosine(task, protected, [torch.tensor([0.0, 5.0])]) == pytest.approx(-1)
    assert np.isnan(fisher_cosine(task, protected, [torch.zeros(2)]))
