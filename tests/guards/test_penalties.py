"""Penalties: the added vector is the gradient of the penalty, computed independently."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import Tensor

from guards.cases import (
    ANSWERS,
    CASES,
    OLD,
    Run,
    last,
    lessons,
    monitor_of,
    old_loss,
    responses,
)
from guards.step_log import GROUPS, StepLog, as_model, fisher, gradient, group_loss, log_steps, near
from riprap import Behavior, guards
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.guards.regularization._penalty import Penalty
from riprap.guards.regularization._probe_outputs import counted_positions


def weighted(
    seen: StepLog, weights: list[Tensor], anchor: list[Tensor], factor: float
) -> list[Tensor]:
    """∇ of factor · Σ Ω (θ − θ*)² by autograd."""
    return gradient(
        lambda own: (
            factor
            * sum((w * (a - b) ** 2).sum() for w, a, b in zip(weights, own, anchor, strict=True))
        ),
        seen.theta,
    )


def test_ewc_is_the_penalty_of_the_paper() -> None:
    seen, run = log_steps(guards.EWC(strength=50.0, max_pull=None))
    weights, anchor = fisher(seen[0].theta), seen[0].theta
    for step in seen[1:]:
        assert near(step.added, weighted(step, weights, anchor, 25.0))
    value = sum(
        float((w * (a - b) ** 2).sum()) / 2
        for w, a, b in zip(weights, seen[3].theta, anchor, strict=True)
    )
    assert run.monitor.actions[3].before["penalty"] == pytest.approx(value, rel=1e-6)


def test_online_ewc_adds_up_and_moves_its_anchor() -> None:
    guard = guards.OnlineEWC(strength=50.0, gamma=0.7, every=2, max_pull=None)
    seen, _ = log_steps(guard, steps=4)
    first, second = fisher(seen[0].theta), fisher(seen[2].theta)
    assert near(seen[1].added, weighted(seen[1], first, seen[0].theta, 25.0))
    assert not any(part.any() for part in seen[2].added)  # at the anchor
    both = [0.7 * a + b for a, b in zip(first, second, strict=True)]
    assert near(seen[3].added, weighted(seen[3], both, seen[2].theta, 25.0))


def test_online_ewc_consolidates_on_request_and_in_another_run() -> None:
    guard = guards.OnlineEWC(strength=50.0, gamma=0.5, max_pull=None)
    seen, run = log_steps(guard, steps=2)
    guard.consolidate()
    more, _ = log_steps(guard, steps=2, model=run.model)
    both = [0.5 * a + b for a, b in zip(fisher(seen[0].theta), fisher(more[0].theta), strict=True)]
    assert near(more[1].added, weighted(more[1], both, more[0].theta, 25.0))


def way(seen: list[StepLog]) -> list[Tensor]:
    return [a - b for a, b in zip(seen[-1].after, seen[0].theta, strict=True)]


def damped(path: list[Tensor], moved: list[Tensor], xi: float) -> list[Tensor]:
    return [p.clamp(min=0) / (m**2 + xi) for p, m in zip(path, moved, strict=True)]


def test_si_on_protected_losses() -> None:
    seen, _ = log_steps(guards.SI(strength=3.0, xi=0.05, refresh=1, max_pull=None), steps=4)
    path = [torch.zeros_like(part) for part in seen[0].theta]
    for at, step in enumerate(seen[:-1]):
        slope = gradient(lambda own: sum(group_loss(own, g) for g in GROUPS), step.theta)  # type: ignore[arg-type,return-value]
        path = [
            p + s * (a - b) for p, s, a, b in zip(path, slope, step.after, step.theta, strict=True)
        ]
        weights = damped(path, way(seen[: at + 1]), 0.05)
        following = seen[at + 1]
        assert near(following.added, weighted(following, weights, seen[0].theta, 3.0), 1e-8)


def test_si_of_a_task_protects_that_task() -> None:
    guard = guards.SI(of="task", strength=3.0, xi=0.05, max_pull=None)
    seen, run = log_steps(guard, 6, before_step=lambda step: step == 4 and guard.consolidate())
    assert not any(part.any() for step in seen[:4] for part in step.added)
    path = [torch.zeros_like(part) for part in seen[0].theta]
    for step in seen[:3]:
        path = [
            p - g * (a - b)
            for p, g, a, b in zip(path, step.task, step.after, step.theta, strict=True)
        ]
    weights = damped(path, way(seen[:3]), 0.05)
    for step in seen[4:]:
        assert near(step.added, weighted(step, weights, seen[3].theta, 3.0))
    guard.consolidate()
    more, _ = log_steps(guard, 2, model=run.model)
    assert any(part.any() for part in more[1].added)  # taken along to another run


def test_mas_is_the_sensitivity_of_the_answers() -> None:
    seen, _ = log_steps(guards.MAS(["second"], strength=0.01, max_pull=None))
    weights = [torch.zeros_like(part) for part in seen[0].theta]
    for i in range(12, 24):
        one = gradient(
            lambda own, i=i: (last(as_model(own), OLD[i : i + 1]) ** 2).sum(), seen[0].theta
        )
        weights = [w + p.abs() / 12 for w, p in zip(weights, one, strict=True)]
    for step in seen[1:]:
        assert near(step.added, weighted(step, weights, seen[0].theta, 0.01))


def divergence(then: Tensor, now: Tensor) -> Tensor:
    """Mean KL(then ‖ now) over rows of logits, from its definition."""
    p, q = then.softmax(-1), now.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def test_kl_on_probes() -> None:
    seen, run = log_steps(guards.KL(["first", "second"], strength=2.0))
    then = last(as_model(seen[0].theta), OLD)
    for step in seen[1:]:
        expected = gradient(
            lambda own: (
                2.0
                * sum(divergence(then[g], last(as_model(own), OLD[g])) / 2 for g in GROUPS.values())
            ),
            step.theta,
        )
        assert near(step.added, expected, 1e-8)
    assert run.monitor.actions[0].before["penalty"] == pytest.approx(0, abs=1e-12)
    assert run.monitor.actions[3].before["penalty"] > 1e-4


def test_kl_on_batches_takes_them_in_turn_and_counts_what_predicts_a_label() -> None:
    labels = OLD.clone()
    labels[:, :3] = -100
    batches = [{"tokens": OLD[:5]}, {"tokens": OLD[5:9], "labels": labels[5:9]}]
    seen, _ = log_steps(guards.KL(batches=batches), steps=5)
    model = as_model(seen[0].theta)
    for at, step in enumerate(seen[1:], 1):
        rows, positions = (slice(0, 5), slice(0, 5)) if at % 2 == 0 else (slice(5, 9), slice(2, 4))

        def away(own: list[Tensor], rows: slice = rows, at: slice = positions) -> Tensor:
            then, now = model(OLD[rows])[:, at], as_model(own)(OLD[rows])[:, at]
            return divergence(then.flatten(0, 1), now.flatten(0, 1))

        assert near(step.added, gradient(away, step.theta), 1e-8)


def test_kl_does_not_count_padding() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    labels = torch.tensor([[-100, -100, 7, 8], [-100, 5, 6, -100]])
    logits = torch.zeros(2, 4, 3)
    assert (
        counted_positions("kl", {"attention_mask": mask}, logits).long().tolist() == mask.tolist()
    )
    both = counted_positions("kl", {"attention_mask": mask, "labels": labels}, logits)
    assert both.long().tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    with pytest.raises(ConfigError, match="no counted position"):
        counted_positions("kl", {"labels": labels * 0 - 100}, logits)


def test_constrained_tokens_are_the_objective_of_the_paper() -> None:
    """The sum of (2/β_t) · −log σ(β_t log π/π₀), token by token, with β 0.5, 2, 2 and then 0.1."""
    guard = guards.ConstrainedTokens(responses(), strength=0.5, early_until=2)
    seen, run = log_steps(guard, steps=4)
    start = as_model(seen[0].theta)

    def objective(own: list[Tensor], rows: slice) -> Tensor:
        now, parts = as_model(own), []
        for ids in OLD[rows]:
            for at, beta in zip((2, 3, 4), (0.5, 2.0, 0.1), strict=True):
                ratio = (
                    now(ids[None])[0, at - 1].log_softmax(-1)[ids[at]]
                    - start(ids[None])[0, at - 1].log_softmax(-1)[ids[at]].detach()
                )
                parts.append(-2 / beta * torch.log(1 / (1 + torch.exp(-beta * ratio))))
        return torch.stack(parts).mean()

    for at, step in enumerate(seen):
        rows = (slice(0, 12), slice(12, 24))[at % 2]
        expected = gradient(lambda own, rows=rows: 0.5 * objective(own, rows), step.theta)
        assert near(step.added, expected, 1e-8)
    assert run.monitor.actions[0].before["penalty"] == pytest.approx(
        math.log(2) * 2 * (1 / 0.5 + 1 / 2 + 1 / 0.1) / 3, rel=1e-6
    )


def test_what_is_not_finite_is_said_and_not_added() -> None:
    guard = guards.L2SP(1.0, max_pull=None)
    run = Run(guard)
    with run.monitor.watch(run.model, run.optimizer, guard=guard):
        for step, (ids, targets) in enumerate(lessons(3)):
            if step == 2:
                guard.anchor[0][0, 0] = float("inf")
            run.step(ids, targets)
            assert all(bool(p.grad.isfinite().all()) for p in run.model.parameters())  # type: ignore[union-attr]
    assert [action.applied for action in run.monitor.actions] == [True, True, False]
    assert run.monitor.actions[2].detail == "nothing was done: the penalty is not finite"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: guards.EWC(strength=0), "strength=0; it must be above 0"),
        (lambda: guards.EWC(of="both", max_pull=None), "choose 'loss' or 'margin'"),
        (lambda: guards.OnlineEWC(gamma=1.5, max_pull=None), "gamma=1.5"),
        (lambda: guards.SI(of="path", max_pull=None), "choose 'protected' or 'task'"),
        (lambda: guards.SI(xi=0.0, max_pull=None), "xi above 0"),
        (lambda: guards.ConstrainedTokens([]), "at least one batch"),
        (lambda: guards.ConstrainedTokens(iter(responses())), "read more than once"),
        (lambda: guards.ConstrainedTokens(responses(), beta=0), "beta=0"),
        (lambda: guards.Lisa(responses(), task_steps=0), "each phase needs a step"),
        (lambda: guards.FeatureAnchor(n_features=0), "n_features=0"),
    ],
)
def test_invalid_arguments_are_refused(make, text) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=text):
        make()


def plain_behavior(**options: object) -> Behavior:
    """Without losses; its margins are what it is given."""
    margins = options.pop("margins", lambda model, ids: last(model, ids)[:, 3])
    return Behavior("plain", OLD, margins=margins)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("guard", "margins", "text"),
    [
        (guards.EWC(max_pull=None), None, "has no losses"),
        (guards.SI(max_pull=None), None, "has no losses"),
        (guards.EWC(["other"], max_pull=None), None, "'other' is not monitored"),
        (guards.KL(), lambda model, ids: model.embed(ids).sum((1, 2)), "does not run the model"),
        (
            guards.MAS(max_pull=None),
            lambda model, ids: model.embed(ids).sum((1, 2)),
            "does not run the model",
        ),
        (guards.FeatureAnchor(layer="blocks.9"), None, "'blocks.9' matches 0 modules"),
        (
            guards.FeatureAnchor(),
            lambda model, ids: last(model, ids)[:, 3] * 0 + model.head.bias[0],
            "no latent of layer blocks.1 affects the margins",
        ),
        (
            guards.FeatureAnchor(),
            lambda model, ids: model.head(model.embed(ids))[:, -1, 3],
            "does not run the model",
        ),
        (guards.ConstrainedTokens([(OLD, OLD * 0 - 100)]), None, "no response token"),
        (guards.ConstrainedTokens([OLD]), None, "without labels"),
        (guards.Lisa([OLD], protected_steps=1, task_steps=1), None, "give loss="),
    ],
    ids=range(11),
)
@pytest.mark.filterwarnings("ignore:behavior 'plain' scores")
def test_unsupported_models_and_behaviors_are_refused(guard: Guard, margins, text) -> None:  # type: ignore[no-untyped-def]
    monitored = plain_behavior(**({} if margins is None else {"margins": margins}))
    run = Run(guard)
    run.monitor = monitor_of([monitored])
    with pytest.raises(ConfigError, match=text):
        run.go(lessons(2))


# A guard by its strength, ten times which is tried too, and how much loss may be left by that.
STRENGTHS = {
    "l2_sp": (lambda s: guards.L2SP(0.3 * s, max_pull=None), 0.1),
    "ewc": (lambda s: guards.EWC(strength=1e4 * s, max_pull=None), 0.6),
    "ewc_of_margins": (lambda s: guards.EWC(of="margin", strength=0.03 * s, max_pull=None), 0.6),
    "online_ewc": (lambda s: guards.OnlineEWC(strength=1e4 * s, max_pull=None), 0.6),
    "si": (lambda s: guards.SI(strength=0.5 * s, refresh=1, max_pull=None), 0.3),
    "mas": (lambda s: guards.MAS(strength=1e-3 * s, max_pull=None), 0.1),
    "kl": (lambda s: guards.KL(strength=0.2 * s), 0.2),
    "constrained_tokens": (
        lambda s: guards.ConstrainedTokens(answers_as_responses(), 0.1 * s),
        0.3,
    ),
    # One layer of a model whose others are free to go round it: little is all that can be asked.
    "feature_anchor": (lambda s: guards.FeatureAnchor(layer="blocks.0", strength=0.05 * s), 0.95),
}


def answers_as_responses() -> list[tuple[Tensor, Tensor]]:
    ids = torch.cat([OLD, ANSWERS[:, None]], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ANSWERS
    return [(ids, labels)]


@pytest.mark.parametrize(("make", "share"), STRENGTHS.values(), ids=STRENGTHS.keys())
def test_more_strength_protects_more(make, share) -> None:  # type: ignore[no-untyped-def]
    """Loss on the old answers after a new task: without a guard, a weak one, a strong one."""

    def lost(guard: Guard | None) -> float:
        run = Run(guard, rate=0.05).go(lessons(20))
        with torch.no_grad():
            return float(old_loss(run.model, (OLD, ANSWERS)))

    none, weak, strong = lost(None), lost(make(1.0)), lost(make(10.0))
    assert none > weak > strong
    assert strong < share * none


def test_a_pull_that_changes_next_to_nothing_is_said_once() -> None:
    with pytest.warns(UserWarning, match="l2_sp: the pull .* it changes next to nothing") as told:
        Run(guards.L2SP(1e-9)).go(lessons(102))
    assert sum("next to nothing" in str(warned.message) for warned in told) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*next to nothing")
        Run(guards.L2SP(0.5)).go(lessons(102))


def step_all(run: Run, gradients: list[float]) -> None:
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for size in gradients:
            for parameter in run.model.parameters():
                parameter.grad = torch.full_like(parameter, size)
            run.optimizer.step()


def test_one_zero_gradient_does_not_hide_a_faint_pull() -> None:
    run = Run(guards.L2SP(1e-9, max_pull=None))
    with pytest.warns(UserWarning, match="it changes next to nothing"):
        step_all(run, [1.0, 0.0, *[1.0] * 100])


def test_a_new_watch_begins_to_measure_the_pull_anew() -> None:
    penalties = {
        name: guard for name, make in CASES.items() if isinstance(guard := make(), Penalty)
    }
    assert len(penalties) > 10
    for name, guard in penalties.items():
        Run(guard).go(lessons(4))
        measured = guard.pull_count
        if isinstance(guard, guards.OnlineEWC | guards.SI):
            guard.consolidate()
        Run(guard).go(lessons(1))
        assert measured > 1 >= guard.pull_count, name


def test_a_resumed_run_goes_on_measuring_the_pull() -> None:
    first, second = guards.L2SP(1e-9), guards.L2SP(1e-9)
    Run(first).go(lessons(60))
    run = Run(second)
    state = copy.deepcopy(first.state_dict())
    second.start = lambda view: second.load_state_dict(state)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="it changes next to nothing"):
        run.go(lessons(45))
