"""FeatureAnchor: the selected latents, their sides, and the gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from guards.cases import ANSWERS, OLD, Run, last, lessons, start, wandered
from guards.step_log import gradient, log_steps, near
from riprap import guards
from riprap.behaviors._margin_formulas import token_margin
from riprap.errors import ConfigError
from riprap.guards.regularization._feature_anchor import FeatureAnchor
from riprap.signals.features._dictionary import TopKSAE
from tiny import PlainLM


def outputs(theta: list[Tensor], ids: Tensor) -> Tensor:
    """What blocks.0 puts out at the last position, by hand; shape (rows, 16)."""
    names = [name for name, _ in start().named_parameters()]
    own = dict(zip(names, theta, strict=True))
    hidden = own["embed.weight"][ids]
    return hidden.mean(1) @ own["blocks.0.weight"].T + own["blocks.0.bias"]


def margins_moved(theta: list[Tensor], direction: Tensor, by: float) -> Tensor:
    """The margins with blocks.0 pushed along a direction at the last position; shape (24,)."""
    model = start().double()
    names = [name for name, _ in model.named_parameters()]

    def push(_module: object, _inputs: object, output: Tensor) -> Tensor:
        pushed = output.clone()
        pushed[:, -1] += by * direction
        return pushed

    handle = model.blocks[0].register_forward_hook(push)  # type: ignore[union-attr,operator]
    with torch.no_grad():
        logits = functional_call(model, dict(zip(names, theta, strict=True)), (OLD,))[:, -1]
    handle.remove()
    return token_margin(logits, ANSWERS)


def slopes(theta: list[Tensor], directions: Tensor) -> Tensor:
    """Mean ∂m/∂z of each direction by finite differences, shape (m,)."""
    found = [
        (margins_moved(theta, d, 1e-6) - margins_moved(theta, d, -1e-6)).mean() / 2e-6
        for d in directions
    ]
    return torch.stack(found)


def test_it_holds_the_latents_with_the_largest_effect() -> None:
    guard = FeatureAnchor(layer="blocks.0", n_features=16, strength=0.3)
    seen, _ = log_steps(guard, steps=3)
    directions = guard.dictionary.W_dec
    then = outputs(seen[0].theta, OLD)
    gram = directions @ directions.T
    assert torch.allclose(gram, torch.eye(16, dtype=gram.dtype), atol=1e-6)
    expected = slopes(seen[0].theta, directions)
    assert torch.equal(guard.signs, expected.sign())
    few = FeatureAnchor(layer="blocks.0", n_features=16)
    few.n_features = 3
    few.dictionary, few.signs = guard.dictionary, torch.zeros(16, dtype=torch.double)
    worth = expected.abs() * (then @ directions.T).square().mean(0).sqrt()
    few._add_features(worth, expected)
    assert set(few.signs.nonzero()[:, 0].tolist()) == set(worth.topk(3).indices.tolist())


def test_the_gradient_is_that_of_the_one_sided_penalty() -> None:
    guard = FeatureAnchor(["first"], layer="blocks.0", n_features=7, strength=0.3)
    seen, run = log_steps(guard, steps=4)
    directions, sides = guard.dictionary.W_dec, guard.signs
    assert len(directions) == 7
    assert sides.abs().sum() == 7
    then = outputs(seen[0].theta, OLD[:12]) @ directions.T

    def penalty(own: list[Tensor]) -> Tensor:
        now = outputs(own, OLD[:12]) @ directions.T
        fallen = torch.relu(then - now)[:, sides > 0].square().sum(1)
        risen = torch.relu(now - then)[:, sides < 0].square().sum(1)
        return 0.3 * (fallen + risen).mean()

    for step in seen[1:]:
        assert near(step.added, gradient(penalty, step.theta), 1e-7)
    assert run.monitor.actions[0].before["penalty"] == 0


def test_latents_that_do_harm_outside_join() -> None:
    """Two are held at first, and the most harmful others from steps 4 and 7 on."""
    theta = [p.detach() for p in start().double().parameters()]
    sae = TopKSAE.initialize(outputs(theta, OLD), latents=48, k=12)
    guard = FeatureAnchor(layer="blocks.0", sae=sae, n_features=2, strength=5.0, reselect_every=3)
    held: list[Tensor] = []
    seen, _ = log_steps(guard, 8, before_step=lambda step: held.append(guard.signs.clone()))
    held.append(guard.signs.clone())
    assert [int(sides.abs().sum()) for sides in held] == [2, 2, 2, 2, 4, 4, 4, 6, 6]
    slope = slopes(seen[3].theta, sae.W_dec.double())
    moved = sae.encode(outputs(seen[3].theta, OLD)) - sae.encode(outputs(theta, OLD))
    # Per probe the slope differs; with the mean slope the order is near enough to be told apart.
    harm = -slope * moved.double().mean(0)
    joined = (held[4] != 0) & (held[0] == 0)
    assert harm[joined].min() > harm.median()
    assert torch.equal(held[4][joined], slope.sign()[joined].to(held[4]))
    assert torch.equal(held[0][held[0] != 0], held[-1][held[0] != 0])  # those of before stay


def test_given_a_drifted_model_it_holds_the_directions_that_moved_most_on_both_sides() -> None:
    theta = [p.detach() for p in start().double().parameters()]
    gone = [p.detach() for p in wandered().double().parameters()]
    moved = outputs(gone, OLD) - outputs(theta, OLD)
    guard = FeatureAnchor(
        ["first", "second"],
        layer="blocks.0",
        n_features=3,
        drifted_model=wandered(),
        both_sides=True,
    )
    seen, run = log_steps(guard, steps=4)
    held = guard.dictionary.W_dec[guard.signs != 0]
    strongest = torch.linalg.svd(moved, full_matrices=False)[2][:3]
    assert len(held) == 3
    assert torch.allclose(held.T @ held, strongest.T @ strongest, atol=1e-5)
    then = outputs(theta, OLD) @ held.T

    def penalty(own: list[Tensor]) -> Tensor:
        return (outputs(own, OLD) @ held.T - then).square().sum(1).mean()

    for step in seen[1:]:
        assert near(step.added, gradient(penalty, step.theta), 1e-6)
    assert run.monitor.actions[0].before["penalty"] == 0


def test_the_latents_that_moved_most_are_anchored() -> None:
    theta = [p.detach() for p in start().double().parameters()]
    gone = [p.detach() for p in wandered().double().parameters()]
    sae = TopKSAE.initialize(outputs(theta, OLD), latents=48, k=12)
    guard = FeatureAnchor(layer="blocks.0", sae=sae, n_features=5, drifted_model=wandered())
    log_steps(guard, steps=1)
    then, now = (sae.encode(outputs(own, OLD)) for own in (theta, gone))
    moved = (now - then).square().mean(0)
    assert set(guard.signs.nonzero()[:, 0].tolist()) == set(moved.topk(5).indices.tolist())


def test_directions_can_be_added_later() -> None:
    """All directions are looked through when some may join, though few are held at first."""
    guard = FeatureAnchor(
        layer="blocks.0", n_features=2, reselect_every=2, drifted_model=wandered()
    )
    held: list[int] = []
    log_steps(guard, 6, before_step=lambda step: held.append(int(guard.signs.abs().sum())))
    assert guard.dictionary.W_dec.shape == (16, 16)
    assert held[1:] == sorted(held[1:])
    assert held[1] == 2 < held[-1]


@pytest.mark.parametrize(
    ("drifted", "text"),
    [
        (start(), r"no latent of layer blocks\.0 moved in the drifted model"),
        (PlainLM(size=20, width=8, depth=2), r"shape \(24, 8\), and \(24, 16\) in"),
        (PlainLM(size=20, width=16, depth=0), r"'blocks\.0' matches 0 modules"),
    ],
    ids=("unmoved", "narrow", "shallow"),
)
def test_an_unsuitable_drifted_model_is_refused(drifted: nn.Module, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Run(FeatureAnchor(layer="blocks.0", drifted_model=drifted)).go(lessons(1))


def test_a_dictionary_of_another_width_is_refused() -> None:
    sae = TopKSAE.initialize(torch.randn(30, 8), latents=16, k=4)
    with pytest.raises(ConfigError, match=r"width 8, layer blocks\.0 has width 16"):
        Run(guards.FeatureAnchor(layer="blocks.0", sae=sae)).go(lessons(1))


def test_a_margin_is_what_the_reference_takes_it_for() -> None:
    model = start().double()
    theta = [p.detach() for p in model.parameters()]
    plain = token_margin(last(model, OLD), ANSWERS)
    assert torch.equal(plain, margins_moved(theta, torch.zeros(16), 0.0))
