"""OSFT of PEFT in the bench: what it keeps, that it is watched, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from experiments.guards_bench.grounds import GROUNDS, loss
from experiments.guards_bench.grounds._digits import Classifier
from experiments.guards_bench.methods import METHODS
from experiments.guards_bench.osft import linear_layers, osft
from experiments.guards_bench.simulate import run
from experiments.onset.unlike.sorting import Decoder
from riprap.errors import ConfigError
from riprap.monitor import Monitor
from riprap.toy import batches
from tiny import make_llama


def learned(rate: float, steps: int, adam: bool) -> tuple[nn.Module, nn.Module]:
    """The model before and after some steps under OSFT, merged."""
    ground = GROUNDS["small_buffer"]
    before = ground.start(0)
    (stage,) = ground.stages(0)
    model = osft(copy.deepcopy(before), 0.5)
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), lr=rate)
    data = batches([stage.task], [stage.batch], 0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, next(data)).backward()
        optimizer.step()
    return before, model.merge_and_unload()


def moved_within(before: nn.Module, after: nn.Module) -> float:
    """Largest share of a weight's change that lies in the leading directions of the weight."""
    shares = []
    for name in ("first", "second", "head"):
        old, new = (getattr(model, name).weight.detach() for model in (before, after))
        u, _, v = torch.linalg.svd(old, full_matrices=False)
        count = min(old.shape) // 2
        change = new - old
        inside = (u[:, :count].T @ change).norm() + (change @ v[:count].T).norm()
        assert change.norm() > 1e-3
        shares.append(float(inside / change.norm()))
    return max(shares)


def test_the_leading_directions_are_kept_under_sgd_and_not_under_adam() -> None:
    assert moved_within(*learned(0.1, 20, adam=False)) < 1e-4
    assert moved_within(*learned(1e-3, 20, adam=True)) > 0.05


def test_wrapping_and_merging_change_nothing() -> None:
    ground = GROUNDS["small_buffer"]
    model, (stage,) = ground.start(0), ground.stages(0)
    ids = stage.test.input_ids[:20]
    with torch.no_grad():
        expected = model(ids)
        wrapped = osft(copy.deepcopy(model), 0.5)
        assert torch.allclose(wrapped(ids), expected, atol=1e-5)
        merged = wrapped.merge_and_unload()
    assert type(merged) is Classifier
    for own, other in zip(model.parameters(), merged.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-6)


@pytest.mark.parametrize("name", ["small_buffer", "permuted_digits"])
def test_a_run_ends_with_what_was_learned(name: str) -> None:
    """Also through several tasks, where it is wrapped and merged again and again."""
    found = run(GROUNDS[name], "osft", METHODS["osft"], 0.5, 5)
    assert not found.failed
    assert found.looks[-1].new > 0.8 and found.work == 1.0
    assert found.looks[0].new < 0.3


def test_the_monitor_watches_it_and_changes_nothing() -> None:
    ground = GROUNDS["small_buffer"]
    (stage,) = ground.stages(0)
    ends = []
    for watched in (False, True):
        model = osft(ground.start(0), 0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = Monitor([own.monitored(0.9) for own in stage.old], probe_every=5)
        data = batches([stage.task], [stage.batch], 0)
        if watched:
            monitor.begin(model, optimizer)
        for _ in range(20):
            optimizer.zero_grad()
            loss(model, next(data)).backward()
            optimizer.step()
        if watched:
            monitor.end()
            history = monitor.history()
            assert {"upright", "permuted"} <= set(history.behavior)
            assert (history.state == "MEASURED").any()
        ends.append([part.detach().clone() for part in model.parameters()])
    assert all(map(torch.equal, *ends))


def test_what_cannot_be_wrapped_is_refused() -> None:
    adapted = get_peft_model(make_llama(), LoraConfig(target_modules="all-linear"))
    with pytest.raises(ConfigError, match="frozen under an adapter"):
        osft(adapted, 0.5)
    with pytest.raises(ConfigError, match="the model has none"):
        osft(nn.Sequential(nn.Embedding(3, 2)), 0.5)


def test_layers_whose_weight_torch_reads_itself_are_left_out() -> None:
    names = linear_layers(Decoder())
    inside = [name for name in names if "out_proj" in name]
    assert names and not inside
