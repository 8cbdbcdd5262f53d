"""Interference by layer: its parts, their names, and that they sum to the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior, Monitor, ReadingStatus
from riprap.evaluation import layer_names
from riprap.signals import Interference, LayerInterference
from tiny import Bigram, PlainLM, make_llama
from views import probe_view, trainable, update_view, values

IDS = torch.randint(3, 47, (4, 5), generator=torch.Generator().manual_seed(3))


def watched() -> list[Behavior]:
    bare = Behavior("bare", IDS, lambda m, ids: m(ids).logits[:, -1, 5])
    return [Behavior.next_token("words", IDS, [9, 11, 30, 12]), bare]


def steps(model: nn.Module, count: int) -> list[list[Tensor]]:
    made = torch.Generator().manual_seed(1)
    return [
        [1e-2 * torch.randn(p.shape, generator=made) for p in trainable(model)]
        for _ in range(count)
    ]


def test_each_part_is_the_product_over_its_own_parameters() -> None:
    model, signal = make_llama(scale=5.0).eval(), LayerInterference()
    view = probe_view(0, watched(), model)
    signal.start(view)
    assert signal.on_probe_evaluation(view) == []
    updates = steps(model, 3)
    for step, update in enumerate(updates, 1):
        assert signal.on_update(update_view(step, view.protected_gradients, update)) == []
    readings = signal.on_probe_evaluation(probe_view(3, watched(), model))
    layers = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(3))]
    layers += ["model.norm", "lm_head"]
    for name in ("words", "bare"):
        own = {r.layer: r.value for r in readings if r.behavior == name}
        assert list(own) == layers
        h = view.protected_gradients.margin_gradients.vector(name, view.parameters)
        for layer, value in own.items():
            expected = sum(
                float((g.double() * part.double()).sum())
                for update in updates
                for (full, _), g, part in zip(model.named_parameters(), h, update, strict=True)
                if full.startswith(layer + ".")
            )
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_parts_sum_to_the_whole_since_the_last_evaluation() -> None:
    model, signal, whole = make_llama(scale=5.0).eval(), LayerInterference(), Interference()
    view = probe_view(0, watched(), model)
    signal.start(view)
    for first in (1, 3):  # two evaluations: sums begin anew at each
        totals = {"words": 0.0, "bare": 0.0}
        for step, update in enumerate(steps(model, 2), first):
            around = update_view(step, view.protected_gradients, update)
            signal.on_update(around)
            for name, value in values(whole.on_update(around), "interference").items():
                totals[name] += value
        readings = signal.on_probe_evaluation(probe_view(first + 1, watched(), model))
        for name, total in totals.items():
            parts = [r.value for r in readings if r.behavior == name and r.value is not None]
            assert sum(parts) == pytest.approx(total, rel=1e-4, abs=1e-6)
            assert max(map(abs, parts)) > 1e-3
    assert signal.on_probe_evaluation(probe_view(9, watched(), model)) == []


def test_under_a_monitor_with_the_optimizers_own_order() -> None:
    model = make_llama(scale=5.0)
    reversed_order = list(model.parameters())[::-1]
    optimizer = torch.optim.AdamW(reversed_order, lr=1e-2)
    monitor = Monitor(watched(), probe_every=3, signals=[Interference(), LayerInterference()])
    with monitor.watch(model, optimizer):
        for _ in range(7):
            model(IDS).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    parts = history[history.signal == "interference_layer"].groupby("behavior").value.sum()
    whole = history[history.signal == "interference"].groupby("behavior").value.sum()
    assert parts.to_dict() == pytest.approx(whole.to_dict(), rel=1e-3)


def test_names_of_layers() -> None:
    plain, bigram = PlainLM(), Bigram()
    assert set(layer_names(plain, trainable(plain))) == {
        "embed",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "head",
    }
    assert layer_names(bigram, trainable(bigram)) == ["table"]
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    assert layer_names(net, trainable(net)) == ["0", "0", "2", "2"]


def test_a_detached_margin_is_not_run() -> None:
    model, signal = make_llama().eval(), LayerInterference()
    cut = Behavior("cut", IDS, lambda m, ids: m(ids).logits[:, -1, 5].detach())
    view = probe_view(0, [cut], model)
    signal.start(view)
    assert [r.state for r in signal.on_probe_evaluation(view)] == [ReadingStatus.NOT_RUN]
    assert signal.on_update(update_view(1, view.protected_gradients, view.parameters)) == []
