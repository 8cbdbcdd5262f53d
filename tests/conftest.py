"""What all tests share: quiet, offline, one thread, and the same numbers each time."""

from __future__ import annotations

import os
import random

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import pytest
import torch
from hypothesis import settings
from tiny import make_llama, make_tokenizer
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from riprap import Behavior, Protocol
from riprap.behaviors.margins import token_margin
from riprap.detectors import ForecastDetector

torch.set_num_threads(1)
settings.register_profile("steady", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return make_llama().eval()


@pytest.fixture
def protocol() -> Protocol:
    return Protocol(name="test", detectors=[ForecastDetector()])


@pytest.fixture
def memory() -> Behavior:
    """Labels to remember, for any classifier of 8 inputs and 4 classes."""
    made = torch.Generator().manual_seed(7)
    inputs = torch.randn(24, 8, generator=made)
    labels = torch.randint(0, 4, (24,), generator=made)
    return Behavior(
        "memory",
        (inputs, labels),
        margins=lambda model, probes: token_margin(model(probes[0]), probes[1]),
        losses=lambda model, probes: functional.cross_entropy(
            model(probes[0]), probes[1], reduction="none"
        ),
    )


@pytest.fixture
def small_net() -> nn.Module:
    """A classifier without anything random in it."""
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
