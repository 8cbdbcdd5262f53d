"""OLoRA: the overlap with earlier adapters, given or found in a PEFT model, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from guards.cases import A_BEFORE, Run, lessons, monitor_of, start
from guards.step_log import gradient, log_steps, near
from riprap import Behavior, guards
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.guards.regularization._o_lora import without_adapter_name
from tiny import make_llama

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 40, (4, 6), generator=torch.Generator().manual_seed(5))


def test_the_gradient_is_that_of_the_squared_overlap() -> None:
    more = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    guard = guards.OLoRA(0.3, [{"blocks.1.weight": A_BEFORE}, {"blocks.1.weight": more}])
    seen, run = log_steps(guard, steps=2)
    names = [name for name, _ in start().named_parameters()]

    def overlap(theta: list[Tensor]) -> Tensor:
        own = dict(zip(names, theta, strict=True))["blocks.1.weight"]
        pairs = [((a[:, None] * own[None]).sum(-1) ** 2).sum() for a in (A_BEFORE, more)]
        return 0.3 * torch.stack(pairs).sum()

    for step, action in zip(seen, run.monitor.actions, strict=True):
        assert near(step.added, gradient(overlap, step.theta), 1e-6)
        assert action.before["penalty"] == pytest.approx(float(overlap(step.theta)) / 0.3, rel=1e-6)


def two_adapters() -> Any:
    """The first is frozen and has been trained elsewhere; the second is trained."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=8)
    torch.manual_seed(1)
    model = peft.get_peft_model(make_llama(scale=5.0), config, adapter_name="old")
    model.add_adapter("new", config)
    model.set_adapter("new")
    return model


def matrices(model: Any, adapter: str) -> dict[str, Tensor]:
    mark = f"lora_A.{adapter}.weight"
    return {
        without_adapter_name(n): p.detach() for n, p in model.named_parameters() if n.endswith(mark)
    }


def overlap(model: Any, earlier: dict[str, Tensor]) -> float:
    pairs = matrices(model, "new").items()
    return sum(float((earlier[name] @ own.T).square().sum()) for name, own in pairs)


def train(model: Any, guard: Guard | None, steps: int = 30) -> Any:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    monitor = monitor_of([Behavior.next_token("w", IDS[:, :4], IDS[:, 4].tolist(), floor=0.01)])
    with monitor.watch(model, optimizer, guard=guard):
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
    return monitor


def test_a_frozen_adapter_of_a_peft_model_is_avoided() -> None:
    plainly, guarded = two_adapters(), two_adapters()
    earlier = matrices(guarded, "old")
    assert len(earlier) == 6
    before = overlap(guarded, earlier)
    train(plainly, None)
    monitor = train(guarded, guards.OLoRA(2.0))
    assert overlap(guarded, earlier) < 0.1 * before
    assert overlap(plainly, earlier) > 0.5 * before
    assert monitor.actions[0].before["penalty"] == pytest.approx(before, rel=1e-5)
    assert all(torch.equal(part, earlier[n]) for n, part in matrices(guarded, "old").items())


def test_what_peft_saved_of_an_earlier_adapter_is_understood() -> None:
    model = two_adapters()
    saved = peft.get_peft_model_state_dict(model, adapter_name="old")
    assert any("lora_B" in name for name in saved)
    monitor = train(model, guards.OLoRA(earlier=[saved]), steps=1)
    expected = overlap(two_adapters(), matrices(two_adapters(), "old"))
    assert monitor.actions[0].before["penalty"] == pytest.approx(expected, rel=1e-5)


def test_without_adapters_it_is_refused() -> None:
    cases = [
        (guards.OLoRA(), "no earlier adapter was found"),
        (guards.OLoRA(earlier=[]), "no earlier adapter was found"),
        (guards.OLoRA(earlier=[{"other.weight": A_BEFORE}]), "names no trained parameter"),
        (guards.OLoRA(earlier=[{"head.weight": A_BEFORE[:, :3]}]), "same number of columns"),
    ]
    for guard, text in cases:
        with pytest.raises(ConfigError, match=text):
            Run(guard).go(lessons(1))
