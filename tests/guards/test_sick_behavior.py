"""One behavior with a gradient that is not finite: the guard protects the others, and says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guards.cases import ANSWERS, CASES, OLD, Run, behavior, last, lessons, monitor_of, replayable
from riprap import Behavior, guards
from riprap.behaviors._margin_formulas import token_margin
from riprap.errors import ConfigError
from riprap.guards import Guard

STEPS = 6
ROWS = slice(12, 24)


def sick(values: Callable[[nn.Module], Tensor]) -> Callable[[nn.Module, object], Tensor]:
    """Return the same finite values, with a gradient that is not finite: that of sqrt(0)."""

    def function(model: nn.Module, _probes: object) -> Tensor:
        zero = last(model, OLD[ROWS])[:, 0] * 0
        return values(model) + 0 * zero.sqrt()

    return function


def sick_behavior() -> Behavior:
    return Behavior(
        "sick",
        (OLD[ROWS], ANSWERS[ROWS]),
        margins=sick(lambda model: token_margin(last(model, OLD[ROWS]), ANSWERS[ROWS])),
        losses=sick(
            lambda model: nn.functional.cross_entropy(
                last(model, OLD[ROWS]), ANSWERS[ROWS], reduction="none"
            )
        ),
    )


class SickLogits(nn.Module):
    """A model whose answers on one half of the old examples have no finite gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(tokens)
        if self.training:  # in passes over probes only
            return logits
        # By the first token, which tells the halves apart in `split_probes`.
        mask = (tokens[:, :1] >= 10)[..., None].float()
        return logits + 0 * (logits * 0 * mask + (1 - mask)).sqrt()


def split_probes(names: tuple[str, str] = ("well", "sick")) -> list[Behavior]:
    """Return two behaviors, of rows whose first token is below 10, and of the others."""
    ids = OLD.clone()
    ids[:, 0] = torch.where(torch.arange(24) < 12, ids[:, 0] % 10, 10 + ids[:, 0] % 10)
    return [
        Behavior.next_token(name, ids[rows], ANSWERS[rows])
        for name, rows in zip(names, (slice(0, 12), ROWS), strict=True)
    ]


def run(guard: Guard, sick_one: bool, of_logits: bool) -> tuple[Run, list[str]]:
    """Train under a guard, with or without a second behavior that is sick."""
    found = Run(guard)
    watched = [behavior("first", slice(0, 12)), *([sick_behavior()] if sick_one else [])]
    if of_logits:
        found.model = SickLogits(found.model)
        watched = split_probes()[: 1 + sick_one]
    found.monitor = monitor_of(watched)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found.go(lessons(STEPS))
    return found, [str(one.message) for one in said if "not finite" in str(one.message)]


OF_GRADIENTS = {
    "agem": lambda: guards.AGEM(refresh=1),
    "gem": lambda: guards.GEM(refresh=1),
    "pcgrad": lambda: guards.PCGrad(refresh=1),
    "update_projection": lambda: guards.UpdateProjection(refresh=1),
    "si": lambda: guards.SI(strength=1.0, refresh=1),
    "ewc": lambda: guards.EWC(strength=30.0),
    "ogd": lambda: guards.OGD(directions=8),
}
OF_LOGITS = {"kl": guards.KL, "mas": lambda: guards.MAS(strength=1e-4), "safegrad": guards.SafeGrad}


@pytest.mark.parametrize("name", [*OF_GRADIENTS, *OF_LOGITS])
def test_the_others_are_protected_as_if_it_were_alone(name: str) -> None:
    of_logits = name in OF_LOGITS
    make = (OF_GRADIENTS | OF_LOGITS)[name]
    (alone, quiet), (both, said) = (run(make(), sick, of_logits) for sick in (False, True))
    assert not quiet
    assert any(action.applied for action in both.monitor.actions)
    if name == "ogd":  # a share of the directions each
        alone, _ = run(guards.OGD(directions=4), False, of_logits)
    if name not in ("kl", "safegrad"):  # a mean over behaviors
        for mine, theirs in zip(both.weights(), alone.weights(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert len(said) == 1
    assert "'sick'" in said[0]
    assert name in said[0]
    assert all(action.detail.endswith("not finite: sick") for action in both.monitor.actions[1:])
    assert all(torch.isfinite(part).all() for part in both.weights())


def test_a_buffer_leaves_out_the_sick_behavior() -> None:
    guard = guards.Replay(guards.SelfDistillationBuffer(split_probes(), batch_size=8))
    found = Run(guard)
    found.model = SickLogits(found.model)
    found.monitor = monitor_of([behavior("well", slice(0, 12)), behavior("sick", ROWS)])
    with pytest.warns(UserWarning, match="the loss on old examples of 'sick' is not finite"):
        found.go(lessons(STEPS))
    assert all(action.applied for action in found.monitor.actions)
    assert all("not finite: sick" in action.detail for action in found.monitor.actions)


@pytest.mark.parametrize("name", ["ewc", "ogd"])
def test_a_guard_of_sick_behaviors_alone_is_refused(name: str) -> None:
    found = Run(OF_GRADIENTS[name]())
    found.monitor = monitor_of([sick_behavior()])
    with pytest.raises(ConfigError, match="of no behavior is finite"):
        found.go(lessons(1))


def test_training_that_is_not_finite_itself_names_no_behavior() -> None:
    found = Run(guards.KL())
    with found.monitor.watch(found.model, found.optimizer, guard=found.guard):
        found.step(*lessons(1)[0])
        with torch.no_grad():
            next(found.model.parameters()).fill_(float("nan"))
        found.step(*lessons(1)[0])
    last_action = found.monitor.actions[-1]
    assert not last_action.applied
    assert "left out" not in last_action.detail


def test_each_behavior_of_many_has_a_direction() -> None:
    watched = [
        Behavior.next_token(f"b{row}", OLD[row : row + 1], ANSWERS[row : row + 1])
        for row in range(24)
    ]
    for guard, held in ((guards.OGD(), 24), (guards.OGD(directions=24), 24)):
        found = Run(guard)
        found.monitor = monitor_of(watched)
        found.go(lessons(1))
        assert guard.basis[0].shape[0] == held
    found = Run(guards.OGD(directions=20))
    found.monitor = monitor_of(watched)
    with pytest.raises(ConfigError, match="directions=20 for 24 behaviors"):
        found.go(lessons(1))


def test_a_tensor_without_importance_is_said() -> None:
    """Of a new LoRA nothing depends on A, so that a guard of importance does not hold it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_attention_heads=2, **sizes))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    ids = torch.randint(0, 20, (8, 5))
    watched = [Behavior.next_token("b", ids, model(ids).logits[:, -1].argmax(-1))]
    for guard in (guards.EWC(of="margin"), guards.MAS(), guards.OGD()):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with (
            pytest.warns(UserWarning, match=r"2 of 4 .*lora_A.* use KL or replay"),
            monitor_of(watched).watch(model, optimizer, guard=guard),
        ):
            pass
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        with monitor_of(watched).watch(model, optimizer, guard=guards.EWC(of="margin")):
            pass
    assert not [one for one in said if "importance" in str(one.message)]


def test_every_case_of_two_healthy_behaviors_leaves_none_out() -> None:
    for name, case in CASES.items():
        done = Run(case()).go(lessons(2))
        assert not [a for a in done.monitor.actions if "left out" in a.detail], name
    assert replayable()
