"""Families of models: training untouched, margins right, interference true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from riprap import Behavior
from support.families import ENCODERS, FAMILIES, build
from support.watched import (
    IDS,
    Built,
    assert_predicted,
    assert_untouched,
    known,
    probe_rows,
    row_logits,
)

pytestmark = pytest.mark.slow


def causal_step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    rows = IDS[torch.randint(0, len(IDS), (4,))]
    optimizer.zero_grad()
    model(input_ids=rows, labels=rows).loss.backward()
    optimizer.step()


def full_training(name: str, lr: float = 3e-5) -> Built:
    model = build(name)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr)
    return model, optimizer, lambda: causal_step(model, optimizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_causal_family(name: str) -> None:
    monitor = assert_untouched(lambda: full_training(name))
    assert_predicted(monitor)


@pytest.mark.parametrize("name", ["Llama", "Mamba", "Zamba2"])
def test_rows_that_share_nothing(name: str) -> None:
    assert_untouched(lambda: full_training(name), lambda model: known(model, probe_rows(0)))


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("Llama", "all-linear"),
        ("Qwen3.5", "all-linear"),
        ("Qwen2-VL", "all-linear"),
        ("Falcon-H1", ["q_proj", "v_proj", "in_proj"]),  # PEFT refuses out_proj beside Mamba
        ("Mamba", ["in_proj", "x_proj"]),
    ],
)
def test_a_causal_family_with_lora(name: str, modules: Any) -> None:
    def adapted() -> Built:
        config = LoraConfig(r=4, lora_dropout=0.2, target_modules=modules)
        model: nn.Module = get_peft_model(build(name), config).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        return model, optimizer, lambda: causal_step(model, optimizer)

    assert_untouched(adapted)


def test_experts_with_lora_on_their_parameters() -> None:
    def adapted() -> Built:
        config = LoraConfig(
            r=4,
            target_modules=["q_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        )
        model = get_peft_model(build("Qwen3-MoE"), config).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert any("experts" in n for n, p in model.named_parameters() if p.requires_grad)
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        return model, optimizer, lambda: causal_step(model, optimizer)

    assert_untouched(adapted)


def test_the_router_loss_of_a_mixture_is_trained_as_before() -> None:
    def with_router_loss() -> Built:
        model, optimizer, _ = full_training("Qwen3-MoE")
        model.config.output_router_logits = True
        return model, optimizer, lambda: causal_step(model, optimizer)

    assert_untouched(with_router_loss)


def known_class(model: nn.Module) -> Behavior:
    """The classes that a classifier gives to rows of unequal lengths."""
    rows = [[1, *range(10, 10 + length), 2] for length in (4, 9, 6, 12, 3, 8)]
    targets = [int(row_logits(model, row).argmax()) for row in rows]
    return Behavior.next_token("known", input_ids=rows, targets=targets)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder(name: str) -> None:
    def classifier() -> Built:
        model: Any = build(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=3e-5)

        def step() -> None:
            rows = IDS[torch.randint(0, len(IDS), (4,))]
            optimizer.zero_grad()
            model(input_ids=rows, labels=rows[:, 0] % 5).loss.backward()
            optimizer.step()

        return model, optimizer, step

    assert_untouched(classifier, known_class)


def test_probes_of_a_model_that_sees_need_no_picture() -> None:
    model = build("Qwen2-VL").eval()
    assert len(known(model).probes) == 8
