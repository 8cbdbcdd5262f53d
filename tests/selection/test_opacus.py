"""Norms against Opacus, in float32."""

from __future__ import annotations

import pytest
import torch
from opacus import GradSampleModule
from torch.nn import functional

from riprap import selection
from selection.cases import batch, make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["linear", "embedding", "layer norm", "lora"])
def test_norms_are_those_of_opacus(name: str) -> None:
    given = batch()
    norms = selection.gradient_norms(make(name).float(), given)
    wrapped = GradSampleModule(make(name).float().train(), strict=False, loss_reduction="sum")
    logits = wrapped(input_ids=given["input_ids"], attention_mask=given["attention_mask"])["logits"]
    pairs = zip(logits, given["labels"], strict=True)
    losses = [functional.cross_entropy(own[:-1], labels[1:]) for own, labels in pairs]
    torch.stack(losses).sum().backward()
    parts = [p.grad_sample.flatten(1) for p in wrapped.parameters() if p.requires_grad]
    assert torch.allclose(norms, torch.cat(parts, 1).norm(dim=1), rtol=1e-4)
