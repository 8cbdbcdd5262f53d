"""Freeze, Clip, EMA and Lisa: the exact effect of each on a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guards.cases import ANSWERS, OLD, Run, halves, lessons, monitor_of, old_loss, start
from guards.step_log import gradient, group_loss, log_steps, near, used
from riprap import Behavior, guards
from riprap.errors import ConfigError
from riprap.guards import Guard
from tiny import make_llama

pytestmark = pytest.mark.filterwarnings("ignore:behavior .w. scores")
HELD = ("embed.", "blocks.0.")


def with_zeros() -> nn.Module:
    """Some weights are −0: adding 0 would turn them into +0."""
    model = start()
    with torch.no_grad():
        model.blocks[0].bias[:3] = -0.0  # type: ignore[index,union-attr,operator]
    return model


def with_adamw(guard: Guard | None, steps: int = 6) -> nn.Module:
    """AdamW decays weights and has momentum: a parameter without a gradient moves all the same."""
    model = with_zeros()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with monitor_of().watch(model, optimizer, guard=guard):
        for ids, targets in lessons(steps):
            optimizer.zero_grad()
            old_loss(model, (ids, targets)).backward()
            optimizer.step()
    return model


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int32)


@pytest.mark.parametrize(
    "guard",
    [guards.Freeze(["blocks.0"], embeddings=True), guards.Freeze(["embed"], layers=1)],
    ids=["by name", "lowest"],
)
def test_what_is_frozen_stays_bit_for_bit(guard: Guard) -> None:
    before, after, plain = with_zeros(), with_adamw(guard), with_adamw(None)
    for (name, one), two, free in zip(
        before.named_parameters(), after.parameters(), plain.parameters(), strict=True
    ):
        assert not torch.equal(one, free)
        assert torch.equal(bits(one), bits(two)) == name.startswith(HELD), name


def test_momentum_from_before_does_not_move_what_is_frozen_later() -> None:
    guard = guards.Scheduled(guards.Freeze(["blocks.1"]), first=4)
    run, moved = Run(guard), []
    with run.monitor.watch(run.model, run.optimizer, guard=guard):
        for ids, targets in lessons(6):
            before = run.model.blocks[1].weight.detach().clone()  # type: ignore[index,union-attr]
            run.step(ids, targets)
            moved.append(not torch.equal(before, run.model.blocks[1].weight))  # type: ignore[index,union-attr]
    assert moved == [True, True, True, False, False, False]
    assert {action.moment for action in run.monitor.actions} == {"gradients", "update"}


def test_what_is_not_frozen_moves_as_if_the_rest_needed_no_gradient() -> None:
    frozen = with_zeros()
    for parameter in (*frozen.embed.parameters(), *frozen.blocks[0].parameters()):  # type: ignore[union-attr,index,operator]
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in frozen.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1
    )
    for ids, targets in lessons(6):
        optimizer.zero_grad()
        old_loss(frozen, (ids, targets)).backward()
        optimizer.step()
    guarded = with_adamw(guards.Freeze(["blocks.0"], embeddings=True))
    for name, parameter in guarded.named_parameters():
        if not name.startswith(HELD):
            assert torch.equal(parameter, frozen.get_parameter(name)), name


def test_freeze_finds_the_parts_of_a_transformer() -> None:
    model = make_llama()
    guard = guards.Freeze(embeddings=True, layers=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.randint(3, 40, (4, 6))
    monitored = [Behavior.next_token("w", ids[:, :4], ids[:, 4].tolist(), floor=0.01)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with monitor_of(monitored).watch(model, optimizer, guard=guard):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    stayed = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    expected = {n for n in before if "embed_tokens" in n or "layers.0." in n or "layers.1." in n}
    assert stayed == expected


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: guards.Freeze(), "freezes nothing"),
        (lambda: guards.Freeze("embed"), "a list of names"),
        (lambda: guards.Freeze(layers=-1), "a count"),
        (lambda: guards.Freeze(["other"]), "'other' matches 0 modules"),
        (lambda: guards.Freeze(["head"], embeddings=True, layers=2), "all of the"),
        (lambda: guards.Freeze(layers=3), "blocks has 2"),
        (lambda: guards.Clip(0), "max_norm=0"),
        (lambda: guards.EMA(decay=1.0), "decay=1.0"),
        (lambda: guards.EMA(every=0), "every=0"),
        (lambda: guards.Lisa(halves(), old_loss, rho=-1), "rho must be 0 or more"),
    ],
)
def test_invalid_arguments_are_refused(make, text) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=text):
        Run(make()).go(lessons(1))


def test_nothing_trained_in_what_is_to_be_frozen() -> None:
    model = start()
    model.embed.requires_grad_(False)  # type: ignore[union-attr,operator]
    with pytest.raises(ConfigError, match="none of the 6 trained parameters"):
        Run(guards.Freeze(embeddings=True), model).go(lessons(1))


def size(vector: list[Tensor]) -> float:
    return float(torch.cat([part.flatten() for part in vector]).norm())


def test_clip_keeps_the_direction_and_bounds_the_length() -> None:
    norms = [size(step.task) for step in log_steps(guards.L2SP(1e-9, max_pull=None))[0]]
    most = sorted(norms)[2] * 1.0001
    seen, run = log_steps(guards.Clip(most))
    actions = run.monitor.actions
    assert {action.applied for action in actions} == {True, False}
    for step, action in zip(seen, actions, strict=True):
        shrink = min(1.0, most / size(step.task))
        assert action.applied == (shrink < 1)
        assert near(used(step), [part * shrink for part in step.task])
        assert action.before["norm"] == pytest.approx(size(step.task))


def test_clip_behind_a_penalty_bounds_the_sum() -> None:
    seen, run = log_steps(guards.Chain(guards.L2SP(5.0, max_pull=None), guards.Clip(0.4)))
    away = [a - b for a, b in zip(seen[3].theta, seen[0].theta, strict=True)]
    both = [g + 5 * a for g, a in zip(seen[3].task, away, strict=True)]
    assert near(used(seen[3]), [part * 0.4 / size(both) for part in both])
    assert run.monitor.actions[-1].after["norm"] == pytest.approx(0.4)


def test_clip_shortens_outliers_only_whatever_the_scale_of_the_loss() -> None:
    for scale in (1e-3, 1e3):
        run = Run(guards.Clip())
        with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
            for step in range(1, 25):
                for parameter in run.model.parameters():
                    parameter.grad = torch.full_like(parameter, scale * (50 if step == 20 else 1))
                run.optimizer.step()
        shortened = [action for action in run.monitor.actions if action.applied]
        assert [action.step for action in shortened] == [20]
        assert shortened[0].after["norm"] == pytest.approx(shortened[0].before["norm"] / 25)


@pytest.mark.parametrize(("at", "shortened"), [(10, []), (11, [11])])
def test_the_first_gradient_that_clip_can_shorten_is_the_eleventh(
    at: int, shortened: list[int]
) -> None:
    run = Run(guards.Clip())
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for step in range(1, at + 1):
            for parameter in run.model.parameters():
                parameter.grad = torch.full_like(parameter, 50.0 if step == at else 1.0)
            run.optimizer.step()
    assert [action.step for action in run.monitor.actions if action.applied] == shortened


def test_a_gradient_that_is_not_finite_is_not_clipped() -> None:
    run = Run(guards.Clip(0.1))
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        old_loss(run.model, (OLD, ANSWERS)).backward()
        run.model.head.bias.grad[0] = float("inf")  # type: ignore[union-attr,index]
        run.optimizer.step()
    assert [action.detail for action in run.monitor.actions] == [
        "nothing was done: the gradient is not finite"
    ]


def test_ema_draws_back_to_the_average() -> None:
    model, average, momentum = start().double(), [], []
    average = [p.detach().clone() for p in model.parameters()]
    momentum = [torch.zeros_like(part) for part in average]
    theta = [part.clone() for part in average]
    seen, run = log_steps(guards.EMA(decay=0.8, every=3), steps=7)
    for at, step in enumerate(seen, 1):
        momentum = [0.9 * m + g for m, g in zip(momentum, step.task, strict=True)]
        theta = [t - 0.1 * m for t, m in zip(theta, momentum, strict=True)]
        average = [0.8 * a + 0.2 * t for a, t in zip(average, theta, strict=True)]
        if at % 3 == 0:
            theta = [part.clone() for part in average]
        assert near(step.after, theta)
    assert [action.step for action in run.monitor.actions] == [3, 6]


def test_ema_only_averages_until_it_is_put() -> None:
    guard = guards.EMA(decay=0.5)
    seen, run = log_steps(guard, steps=3)
    (told,) = run.monitor.actions
    assert not told.applied
    assert told.detail == "only averages the weights: after training call copy_to"
    average = seen[0].theta
    for step in seen:
        average = [(a + b) / 2 for a, b in zip(average, step.after, strict=True)]
    guard.copy_to(list(run.model.parameters()))
    assert near([p.detach() for p in run.model.parameters()], average)
    with pytest.raises(ConfigError, match="differ from the averaged ones"):
        guard.copy_to(list(run.model.parameters())[1:])


def test_lisa_alternates_and_holds_each_stretch_near_its_beginning() -> None:
    guard = guards.Lisa(halves(), old_loss, task_steps=2, protected_steps=3, rho=0.7, max_pull=None)
    seen, run = log_steps(guard, steps=8)
    protected = [True, True, True, False, False, True, True, True]
    begun = [0, 0, 0, 3, 3, 5, 5, 5]
    groups = iter(["first", "second"] * 3)
    for at, step in enumerate(seen):
        base = step.task
        if protected[at]:
            group = next(groups)
            base = gradient(lambda own, group=group: group_loss(own, group), step.theta)
        away = [a - b for a, b in zip(step.theta, seen[begun[at]].theta, strict=True)]
        assert near(used(step), [b + 0.7 * a for b, a in zip(base, away, strict=True)])
    said = ["protected" in action.detail for action in run.monitor.actions]
    assert said == protected


def test_lisa_keeps_what_the_task_alone_would_lose() -> None:
    def lost(guard: Guard | None) -> float:
        run = Run(guard, rate=0.05).go(lessons(24))
        with torch.no_grad():
            return float(old_loss(run.model, (OLD, ANSWERS)))

    some = guards.Lisa(halves(), old_loss, task_steps=6, protected_steps=2)
    more = guards.Lisa(halves(), old_loss, task_steps=4, protected_steps=4)
    assert lost(None) > lost(some) > lost(more)


def test_lisa_takes_the_models_own_loss() -> None:
    model = make_llama()
    ids = torch.randint(3, 40, (4, 6))
    monitored = [Behavior.next_token("w", ids[:, :4], ids[:, 4].tolist(), floor=0.01)]
    guard = guards.Lisa([{"input_ids": ids, "labels": ids}], task_steps=1, protected_steps=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = monitor_of(monitored)
    with monitor.watch(model, optimizer, guard=guard):
        model(input_ids=ids.flip(1), labels=ids.flip(1)).loss.backward()
        kept = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
    action = monitor.actions[0]
    now = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), kept, strict=True):
            parameter.copy_(part)
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids).loss)
    assert action.before["protected_loss"] == pytest.approx(expected, rel=1e-5)
    assert not all(map(torch.equal, now, kept))
