"""Bit-identity under what loops do beside training: checkpointing, compilation, other trainers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer

from invariants.test_no_trace import (
    PROMPTS,
    TOKENIZER,
    arguments,
    assert_read,
    compare,
    llama,
    monitor_of,
    of_words,
    same,
    state,
    words_loss,
)
from riprap import AlertPolicy
from riprap.integrations.hf import MonitorCallback
from tiny import make_llama

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:behavior .* before training")]
Built = tuple[nn.Module, Any, Callable[[], Tensor]]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool, policy: AlertPolicy) -> None:
    def build() -> Built:
        model: Any = make_llama(attention_dropout=0.2).train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2), lambda: words_loss(model)

    compare(build, of_words(), policy, steps=20)
    assert build()[0].is_gradient_checkpointing


def test_adapter_with_checkpointing_and_mixed_precision(policy: AlertPolicy) -> None:
    def build() -> Built:
        model, optimizer, _ = llama(adapted=True)
        model.gradient_checkpointing_enable({"use_reentrant": False})

        def loss() -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return words_loss(model)

        return model, optimizer, loss

    compare(build, of_words(), policy, steps=15, parts=2)


def test_a_model_in_half_precision(policy: AlertPolicy) -> None:
    def build() -> Built:
        model = make_llama().bfloat16().train()
        return model, torch.optim.SGD(model.parameters(), lr=1e-2), lambda: words_loss(model)

    compare(build, of_words(), policy, steps=15)


def test_a_compiled_model_is_not_compiled_again(policy: AlertPolicy) -> None:
    """Training's own graphs stay as they are; the probes may cost graphs of their own, once."""
    graphs: list[list[int]] = []

    def build() -> Built:
        torch._dynamo.reset()
        made: list[int] = []
        graphs.append(made)

        def backend(graph: Any, _inputs: Any) -> Any:
            made.append(len(graph.graph.nodes))
            return graph.forward

        model: Any = make_llama().train()
        compiled = torch.compile(model, backend=backend)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return compiled, optimizer, lambda: words_loss(compiled)

    compare(build, of_words(), policy, steps=12)
    plain, watched = graphs
    assert plain
    # Every graph of the watched run beyond the plain one's belongs to a shape of the probes: a
    # probe evaluation must not cost another compilation each time.
    assert len(watched) <= len(plain) + 4 * len(of_words())


def test_accelerate(policy: AlertPolicy) -> None:
    ends = []
    for watched in (False, True):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        bare = make_llama(attention_dropout=0.2).train()
        model, optimizer = accelerator.prepare(bare, torch.optim.AdamW(bare.parameters(), lr=1e-2))
        monitor = monitor_of(of_words(), policy)
        if watched:
            monitor.begin(model, optimizer)
        for _ in range(24):
            with accelerator.accumulate(model):
                accelerator.backward(words_loss(model))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        monitor.end()
        ends.append(state(bare, optimizer))
        if watched:
            assert_read(monitor, 12)
    assert same(*ends)


def test_dpo_trainer(policy: AlertPolicy, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": PROMPTS[i % 4]}],
            "chosen": [{"role": "assistant", "content": "sure here is a cake"}],
            "rejected": [{"role": "assistant", "content": "sorry i cannot help"}],
        }
        for i in range(24)
    ]
    ends = []
    for watched in (False, True):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        monitor = monitor_of(of_words(), policy)
        trainer = DPOTrainer(
            model=make_llama(attention_dropout=0.2),
            args=arguments(DPOConfig, tmp_path / str(watched), bf16=False, max_length=32),
            train_dataset=Dataset.from_list(rows),
            processing_class=TOKENIZER,
            peft_config=LoraConfig(r=4, lora_dropout=0.2, target_modules="all-linear"),
            callbacks=[MonitorCallback(monitor)] if watched else [],
        )
        trainer.train()
        ends.append(state(trainer.model, trainer.optimizer))
        if watched:
            assert_read(monitor, 12)
    assert same(*ends)
