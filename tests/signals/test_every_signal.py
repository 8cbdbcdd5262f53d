"""What all signals have in common; a new one is tested by adding it to `signals.everything()`."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import Behavior, Reading, ReadingStatus, signals
from riprap.signals import (
    CKA,
    Drift,
    Energy,
    KLToStart,
    LinearProbe,
    Overlap,
    Projection,
    SAEFeatures,
    Signal,
    TopKCosine,
)
from tiny import PROMPTS, PlainLM, make_llama, make_tokenizer
from views import gradient_view, probe_view, trainable, update_view, values

CHAT = make_tokenizer()
IDS = torch.tensor([[3, 7, 9, 12], [3, 8, 10, 4], [5, 6, 7, 8]])


def of_base() -> TopKCosine:
    """What needs something from the user, with what it needs."""
    return TopKCosine(make_llama(seed=9).state_dict(), k=50)


Kind = Callable[[], Signal]
KINDS: list[Kind] = [*(type(signal) for signal in signals.everything()), of_base]
every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def watched() -> list[Behavior]:
    return [
        Behavior.response_prefix("refusal", CHAT, PROMPTS, ["sorry"], contrast="words"),
        Behavior.next_token("words", IDS, [9, 11, 30], contrast="refusal"),
        Behavior("bare", IDS, lambda m, ids: m(ids).logits[:, -1, 5].detach()),
    ]


class Training:
    """A few steps on a task, each with all moments of a signal."""

    def __init__(self, signal: Signal) -> None:
        self.model = make_llama(attention_dropout=0.3).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.signal = signal
        self.readings: list[Reading] = []

    def run(self, steps: int = 2) -> None:
        view = probe_view(0, watched(), self.model)
        self.watch("start", view)
        self.watch("on_probe_evaluation", view)
        for step in range(1, steps + 1):
            ids = torch.randint(3, 47, (4, 7))
            self.optimizer.zero_grad()
            logits = self.model(ids[:, :-1]).logits
            functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.watch("on_gradient", gradient_view(step, view.protected_gradients, grads))
            old = [p.detach().clone() for p in self.model.parameters()]
            self.optimizer.step()
            update = [p.detach() - o for p, o in zip(self.model.parameters(), old, strict=True)]
            self.watch("on_update", update_view(step, view.protected_gradients, update))
            view = probe_view(step, watched(), self.model)
            self.watch("on_probe_evaluation", view)

    def watch(self, moment: str, view: Any) -> None:
        kept = self.snapshot()
        self.readings += getattr(self.signal, moment)(view) or []
        assert same(kept, self.snapshot()), f"{moment} left a trace"

    def snapshot(self) -> list[Any]:
        return [
            [p.detach().clone() for p in self.model.parameters()],
            [None if p.grad is None else p.grad.clone() for p in self.model.parameters()],
            [b.clone() for b in self.model.buffers()],
            [m.training for m in self.model.modules()],
            copy.deepcopy(self.optimizer.state_dict()),
            [torch.get_rng_state(), np.random.get_state(), random.getstate()],
        ]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return bool((one == two).all())
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@cache
def trained(kind: Kind) -> Training:
    """Fails where a moment of the signal leaves a trace."""
    torch.manual_seed(1)
    training = Training(kind())
    training.run()
    return training


@every
def test_it_reads_and_changes_nothing(kind: Kind) -> None:
    assert any(r.value is not None for r in trained(kind).readings)


@every
def test_every_reading_is_finite_or_says_why_not(kind: Kind) -> None:
    for reading in trained(kind).readings:
        if reading.state is ReadingStatus.MEASURED:
            assert reading.value is not None
            assert np.isfinite(reading.value)
        else:
            assert reading.value is None
            assert reading.detail
        assert 0 <= reading.step <= 2
        assert reading.behavior in {"refusal", "words", "bare", ""}


@every
def test_two_of_a_kind_share_nothing(kind: Kind) -> None:
    assert trained(kind).readings == trained.__wrapped__(kind).readings


@every
def test_an_unchanged_model_reads_the_same_again(kind: Kind) -> None:
    signal, model = kind(), make_llama().eval()
    signal.start(probe_view(0, watched(), model))
    first = signal.on_probe_evaluation(probe_view(1, watched(), model))
    again = signal.on_probe_evaluation(probe_view(2, watched(), model))
    assert [(r.behavior, r.signal, r.value) for r in first] == [
        (r.behavior, r.signal, r.value) for r in again
    ]


IDENTITY = {
    "drift_mean": 0,
    "drift_direction": 0,
    "kl_start": 0,
    "kl_from_start": 0,
    "projection_ratio": 1,
}


def test_at_the_start_nothing_has_moved() -> None:
    model = make_llama().eval()
    start, later = probe_view(0, watched(), model), probe_view(4, watched(), model)
    found: dict[str, list[float]] = {name: [] for name in IDENTITY}
    for signal in signals.everything():
        signal.start(start)
        for reading in signal.on_probe_evaluation(later):
            if reading.signal in IDENTITY and reading.value is not None:
                found[reading.signal].append(reading.value)
    for name, expected in IDENTITY.items():
        assert found[name] == pytest.approx([expected] * len(found[name]), abs=1e-5)
        assert found[name]


class Flat(nn.Module):
    """A language model without any list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(47, 8), nn.Tanh(), nn.Linear(8, 47))

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids)


def pair() -> list[Behavior]:
    ids = torch.cat([IDS, IDS[:1] + 5])
    return [
        Behavior.next_token("a", ids, [9, 11, 30, 4], contrast="b"),
        Behavior.next_token("b", ids + 1, [8, 7, 6, 5], contrast="a"),
    ]


@pytest.mark.parametrize(
    "kind", [Projection, Energy, Drift, Overlap, CKA, LinearProbe, SAEFeatures]
)
def test_features_of_a_model_without_layers_are_not_run_and_say_how(kind: Kind) -> None:
    model, signal = Flat(), kind()
    view = probe_view(0, pair(), model)
    assert view.layer is None
    signal.start(view)
    readings = signal.on_probe_evaluation(view)
    assert {r.state for r in readings} == {ReadingStatus.NOT_RUN}
    assert all("Monitor(..., feature_layer=" in r.detail for r in readings)
    assert signal.on_probe_evaluation(probe_view(1, pair(), model)) == []


@pytest.mark.parametrize(
    "kind", [Projection, Energy, Drift, Overlap, CKA, LinearProbe, SAEFeatures]
)
def test_a_named_layer_is_the_remedy(kind: Kind) -> None:
    model, signal = Flat(), kind()
    view = probe_view(0, pair(), model, layer="net.1")
    signal.start(view)
    readings = signal.on_probe_evaluation(view)
    assert readings
    assert all(r.value is not None and r.layer == "net.1" for r in readings)


@pytest.mark.parametrize("kind", [Projection, Energy, Drift, CKA, LinearProbe, SAEFeatures])
def test_a_layer_that_the_margin_does_not_run_is_said_to_be_so(kind: Kind) -> None:
    model = PlainLM()
    aside = Behavior("aside", IDS, lambda m, ids: m.head(m.embed(ids))[:, -1, 4], contrast="aside")
    signal, view = kind(), probe_view(0, [aside], model)
    signal.start(view)
    assert [
        (r.state, "blocks.1 was not run" in r.detail) for r in signal.on_probe_evaluation(view)
    ] == [(ReadingStatus.NOT_RUN, True)]


def test_kl_agrees_with_float64() -> None:
    model, signal = make_llama().eval(), KLToStart()
    behaviors = watched()[:2]
    view = probe_view(0, behaviors, model)
    signal.start(view)
    with torch.no_grad():
        then = model(IDS).logits[:, -1].double().log_softmax(-1)
        for parameter in trainable(model):
            parameter += 0.05 * torch.randn_like(parameter)
        now = model(IDS).logits[:, -1].double().log_softmax(-1)
    readings = signal.on_probe_evaluation(probe_view(3, behaviors, model))
    forth = float((then.exp() * (then - now)).sum(-1).mean())
    back = float((now.exp() * (now - then)).sum(-1).mean())
    assert abs(forth / back - 1) > 0.01
    for name, expected in (("kl_start", forth), ("kl_from_start", back)):
        found = values(readings, name)
        assert found["words"] == pytest.approx(expected, rel=1e-4)
        assert found["refusal"] > 0


def test_kl_of_logits_that_were_not_seen_is_not_run() -> None:
    model, signal = PlainLM(), KLToStart()
    aside = Behavior("aside", IDS, lambda m, ids: m.head(m.embed(ids))[:, -1, 4])
    view = probe_view(0, [aside], model)
    signal.start(view)
    assert [r.state for r in signal.on_probe_evaluation(view)] == [ReadingStatus.NOT_RUN]
    assert signal.on_probe_evaluation(probe_view(1, [aside], model)) == []
