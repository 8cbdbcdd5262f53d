"""What all tests share: quiet, offline, one thread, and the same numbers each time."""

from __future__ import annotations

import functools
import os
import random

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from riprap import AlertPolicy, Behavior, Monitor
from riprap.behaviors._margin_formulas import token_margin
from riprap.detectors import ForecastDetector
from tiny import make_llama, make_tokenizer

torch.set_num_threads(1)
settings.register_profile("steady", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate at steps that do not depend on the machine; tests of the budget give one."""
    monkeypatch.setitem(Monitor.__init__.__kwdefaults__, "budget", None)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return make_llama().eval()


@pytest.fixture
def policy() -> AlertPolicy:
    return AlertPolicy(name="test", detectors=[ForecastDetector()])


def _lesson() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(7)
    return torch.randn(24, 8, generator=made), torch.randint(0, 4, (24,), generator=made)


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


@pytest.fixture
def memory() -> Behavior:
    """Labels to remember, for any classifier of 8 inputs and 4 classes."""
    return Behavior(
        "memory",
        _lesson(),
        margins=lambda model, probes: token_margin(model(probes[0]), probes[1]),
        losses=lambda model, probes: functional.cross_entropy(
            model(probes[0]), probes[1], reduction="none"
        ),
    )


@pytest.fixture
def small_net() -> nn.Module:
    """A classifier without anything random in it."""
    return _net()


@functools.cache
def _learned() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net, (inputs, labels) = _net(), _lesson()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(250):
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    assert (net(inputs).argmax(1) == labels).all()
    return net.state_dict()


@pytest.fixture
def learned() -> nn.Module:
    """`small_net` after it has learned all of `memory`."""
    net = _net()
    net.load_state_dict(_learned())
    return net
