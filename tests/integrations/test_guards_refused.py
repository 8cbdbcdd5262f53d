"""Setups that a guard does not support are refused before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

from integrations.test_guarded import IDS, monitor_of, plain, words
from riprap import Behavior, guards
from riprap.errors import ConfigError
from riprap.integrations.hf import MonitorCallback
from tiny import make_llama


def test_a_behavior_without_a_protected_gradient_is_refused(tmp_path: Path) -> None:
    detached = Behavior(
        "detached", IDS, lambda model, ids: 1 + model(ids).logits[:, -1, 5].detach() ** 2
    )
    cases = [
        (guards.AGEM(["detached"]), "'detached' has no protected gradient"),
        (guards.AGEM(["words"], of="loss"), ""),
        (guards.AGEM(["detached"], of="loss"), "'detached' has no protected gradient"),
    ]
    for index, (guard, text) in enumerate(cases):
        monitor = monitor_of(words(), detached)
        trainer = plain(tmp_path / str(index), [MonitorCallback(monitor, guard)], max_steps=1)
        if text:
            with pytest.raises(ConfigError, match=text):
                trainer.train()
        else:
            trainer.train()
        assert monitor.step == trainer.state.global_step == (0 if text else 1)


def test_a_model_without_trained_parameters_is_refused(tmp_path: Path) -> None:
    monitor = monitor_of()
    trainer = plain(tmp_path, [MonitorCallback(monitor, guards.AGEM())])
    trainer.create_optimizer()
    trainer.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to watch"):
        trainer.train()
    assert monitor.step == 0


class Partitioned:
    """As DeepSpeed's ZeRO optimizers: not a torch optimizer, but it contains one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups


Partitioned.__module__ = "deepspeed.runtime.zero.stage_1_and_2"


def test_deepspeeds_optimizer_is_refused() -> None:
    PartialState()
    model = make_llama()
    inner = torch.optim.AdamW(model.parameters())
    for guard in (None, guards.AGEM()):
        wrapped = DeepSpeedOptimizerWrapper(Partitioned(inner))
        with pytest.raises(ConfigError, match="DeepSpeed steps inside its own engine"):
            monitor_of().begin(model, wrapped, guard)
