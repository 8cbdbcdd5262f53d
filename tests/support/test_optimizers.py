"""Optimizers that people use: training untouched, steps seen, interference true; or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Adafactor

from riprap import Monitor
from riprap.errors import ConfigError
from support.families import build
from support.watched import IDS, Built, assert_predicted, assert_untouched, known

pytestmark = pytest.mark.slow
Make = Callable[[list[nn.Parameter]], Any]


def eight_bit(parameters: list[nn.Parameter]) -> Any:
    bnb = pytest.importorskip("bitsandbytes")
    return bnb.optim.AdamW8bit(parameters, lr=1e-5, min_8bit_size=16)


def paged(parameters: list[nn.Parameter]) -> Any:
    bnb = pytest.importorskip("bitsandbytes")
    return bnb.optim.PagedAdamW32bit(parameters, lr=1e-5)


def schedule_free(parameters: list[nn.Parameter]) -> Any:
    schedulefree = pytest.importorskip("schedulefree")
    optimizer = schedulefree.AdamWScheduleFree(parameters, lr=1e-5)
    optimizer.train()
    return optimizer


OPTIMIZERS: dict[str, Make] = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=1e-5, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-5),
    "AdamW, one kernel": lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=1e-5, foreach=True),
    "torch's Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-5),
    "transformers' Adafactor": lambda p: Adafactor(p, lr=1e-5, relative_step=False),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-5),
    "8-bit AdamW": eight_bit,
    "paged AdamW": paged,
    "schedule-free AdamW": schedule_free,
}


def loss_of(model: Any) -> Tensor:
    rows = IDS[torch.randint(0, len(IDS), (4,))]
    return model(input_ids=rows, labels=rows).loss


def trained_by(make: Callable[[nn.Module], Any]) -> Built:
    model = build("Llama")
    optimizer = make(model)
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]

    def step() -> None:
        model.zero_grad()
        loss_of(model).backward()
        for one in optimizers:
            one.step()

    return model, optimizer, step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer(name: str) -> None:
    make = OPTIMIZERS[name]
    monitor = assert_untouched(lambda: trained_by(lambda model: make(list(model.parameters()))))
    assert_predicted(monitor)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]


def the_others(model: nn.Module, taken: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    ids = {id(parameter) for parameter in taken}
    return [parameter for parameter in model.parameters() if id(parameter) not in ids]


def test_muon_alone() -> None:
    monitor = assert_untouched(
        lambda: trained_by(lambda model: torch.optim.Muon(hidden_matrices(model), lr=1e-5))
    )
    assert_predicted(monitor)


def test_muon_and_adamw() -> None:
    def both(model: nn.Module) -> list[torch.optim.Optimizer]:
        matrices = hidden_matrices(model)
        return [
            torch.optim.Muon(matrices, lr=1e-5),
            torch.optim.AdamW(the_others(model, matrices), lr=1e-5),
        ]

    monitor = assert_untouched(lambda: trained_by(both))
    assert_predicted(monitor)  # interference is that of both updates together


def test_a_closure() -> None:
    def lbfgs() -> Built:
        model = build("Llama")
        optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-5, max_iter=2)

        def closure() -> Tensor:
            torch.manual_seed(3)
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            return loss

        return model, optimizer, lambda: optimizer.step(closure)

    assert_predicted(assert_untouched(lbfgs, steps=4))


def layer_wise(module: str, name: str) -> type[torch.optim.Optimizer]:
    """A stand-in for an optimizer that steps inside the backward pass."""

    def step(self: Any, closure: Any = None) -> None:
        return None

    made = type(name, (torch.optim.Optimizer,), {"step": step})
    made.__module__ = module
    return made


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers.trainer_utils", "LayerWiseDummyOptimizer"),
        ("transformers.trainer_pt_utils", "LayerWiseDummyOptimizer"),
        ("lomo_optim.lomo", "Lomo"),
        ("lomo_optim.adalomo", "AdaLomo"),
    ],
)
def test_what_steps_inside_the_backward_pass_is_refused(module: str, name: str) -> None:
    model = build("Llama")
    optimizer = layer_wise(module, name)(model.parameters(), {"lr": 1e-3})
    with (
        pytest.raises(ConfigError, match="backward"),
        Monitor([known(model)]).watch(model, optimizer),
    ):
        pass
    assert not optimizer._optimizer_step_pre_hooks


def test_the_real_class_of_transformers_is_refused() -> None:
    import transformers.trainer_pt_utils as there

    model = build("Llama")
    optimizer = there.LayerWiseDummyOptimizer(optimizer_dict={}, lr=1e-3)
    with pytest.raises(ConfigError), Monitor([known(model)]).watch(model, optimizer):
        pass
