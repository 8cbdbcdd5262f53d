"""DeepSpeed takes steps that no hook sees: it is refused by name, not monitored in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from riprap import Behavior, Monitor, evaluation
from riprap.errors import ConfigError


class ZeroOptimizer:
    """As in `deepspeed.runtime.zero.stage_1_and_2`: not a torch optimizer, but it contains one."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer = inner
        self.param_groups = inner.param_groups


class Engine(nn.Module):
    """As in `deepspeed.runtime.engine`."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        super().__init__()
        self.module = module
        self.optimizer = optimizer

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


class CPUAdam(torch.optim.Adam):
    """As in `deepspeed.ops.adam`: it steps as any torch optimizer does."""


class Wrapper(torch.optim.Optimizer):
    """As in `accelerate.utils.deepspeed`: a torch optimizer whose step does nothing."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})

    def step(self, closure: Any = None) -> None:
        pass


ZeroOptimizer.__module__ = "deepspeed.runtime.zero.stage_1_and_2"
Engine.__module__ = "deepspeed.runtime.engine"
CPUAdam.__module__ = "deepspeed.ops.adam.cpu_adam"


@pytest.mark.parametrize("what", ["zero", "engine", "wrapper", "model"])
def test_what_deepspeed_steps_is_refused_by_name(
    learned: nn.Module, memory: Behavior, what: str
) -> None:
    inner = torch.optim.Adam(learned.parameters())
    zero = ZeroOptimizer(inner)
    model, optimizer = {
        "zero": (learned, zero),
        "engine": (learned, Engine(learned, zero)),
        "wrapper": (learned, Wrapper(zero)),
        "model": (Engine(learned, inner), inner),
    }[what]
    monitor = Monitor([memory])
    with pytest.raises(ConfigError, match=r"cannot watch a .*DeepSpeed.*DDP or FSDP2") as raised:
        monitor.begin(model, optimizer)
    assert "riprap.evaluation.evaluate(behavior, engine.module)" in str(raised.value)
    assert not inner._optimizer_step_pre_hooks
    monitor.begin(learned, inner)  # and the monitor can still be used
    monitor.end()


def test_what_the_refusal_advises_works(learned: nn.Module, memory: Behavior) -> None:
    engine = Engine(learned, ZeroOptimizer(torch.optim.Adam(learned.parameters())))
    before = {name: part.clone() for name, part in engine.state_dict().items()}
    result = evaluation.evaluate(memory, engine.module)
    assert (result.margins > 0).all()
    assert all(torch.equal(part, before[name]) for name, part in engine.state_dict().items())


def test_a_torch_optimizer_of_deepspeed_is_monitored(learned: nn.Module, memory: Behavior) -> None:
    optimizer = CPUAdam(learned.parameters(), lr=1e-2)
    monitor = Monitor([memory])
    with monitor.watch(learned, optimizer):
        learned(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    assert monitor.step == 1
    assert "norm_update" in set(monitor.history().signal)
