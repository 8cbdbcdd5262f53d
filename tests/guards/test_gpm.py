"""GPM: layer by layer, against singular vectors of inputs collected by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guards.cases import OLD, Run, last, lessons, monitor_of, start
from riprap import Behavior, guards
from riprap import evaluation as probing
from riprap.errors import ConfigError
from riprap.guards.projection._gpm import extend_basis
from tiny import PROMPTS, make_gpt2, make_llama, make_tokenizer, token

LINEARS = ["blocks.0.weight", "blocks.1.weight", "head.weight"]


def read(rows: slice) -> dict[str, Tensor]:
    """What each linear layer of the start reads on some probes, shape (positions, d), float64."""
    model = start().double()
    hidden, found = model.embed(OLD[rows]), {}  # type: ignore[operator]
    for at, block in enumerate(model.blocks):  # type: ignore[arg-type]
        means = hidden.cumsum(1) / torch.arange(1, 6)[:, None]
        found[f"blocks.{at}.weight"] = means.reshape(-1, 16)
        hidden = hidden + torch.tanh(block(means))
    found["head.weight"] = hidden.reshape(-1, 16)
    return {name: rows.detach() for name, rows in found.items()}


def main_directions(rows: Tensor, energy: float) -> Tensor:
    """The fewest right singular vectors that hold the energy, shape (d, k)."""
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    shares = values.square().cumsum(0) / values.square().sum()
    return vectors[: int((shares < energy).sum()) + 1].T


def projector(basis: Tensor) -> Tensor:
    return basis @ basis.T


def in_order(run: Run) -> dict[str, int]:
    return {name: at for at, (name, _) in enumerate(run.model.named_parameters())}


def test_the_projected_gradient_is_orthogonal_to_protected_inputs() -> None:
    run = Run(guards.GPM(["first"], free=0.0))
    expected = {name: main_directions(rows, 0.97) for name, rows in read(slice(0, 12)).items()}
    raw: list[dict[str, Tensor]] = []
    left: list[dict[str, Tensor]] = []

    def note(into: list[dict[str, Tensor]]) -> object:
        return lambda *_: into.append(
            {n: p.grad.double() for n, p in run.model.named_parameters()}  # type: ignore[union-attr]
        )

    run.optimizer.register_step_pre_hook(note(raw))  # type: ignore[arg-type]
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.optimizer.register_step_pre_hook(note(left))  # type: ignore[arg-type]
        for ids, targets in lessons(3):
            run.step(ids, targets)
    places = in_order(run)
    for name, basis in expected.items():
        assert 0 < basis.shape[1] < 16
        own = run.guard.input_bases[places[name]].double()  # type: ignore[union-attr]
        torch.testing.assert_close(projector(own), projector(basis), atol=1e-4, rtol=0)
        for before, after in zip(raw, left, strict=True):
            size = float(before[name].norm())
            assert float((before[name] @ basis).norm()) > 0.1 * size
            assert float((after[name] @ basis).norm()) < 1e-4 * size
            wanted = before[name] - before[name] @ basis @ basis.T
            torch.testing.assert_close(after[name], wanted, atol=1e-4 * size, rtol=1e-3)
    for before, after in zip(raw, left, strict=True):
        for name in before.keys() - expected.keys():  # biases and the embedding are left alone
            assert torch.equal(before[name], after[name])


def test_a_layer_goes_on_answering_protected_inputs_as_it_did() -> None:
    """With momentum and after many steps: ‖X ΔWᵀ‖ ≤ √(1 − energy) ‖X‖ ‖ΔW‖."""
    rows, energy = read(slice(0, 24)), 0.98
    shares: dict[bool, list[float]] = {}
    for guard in (None, guards.GPM(energy=energy, free=0.0)):
        run = Run(guard)
        weights = [run.model.get_parameter(name) for name in LINEARS]
        before = [weight.detach().double() for weight in weights]
        run.go(lessons(10))
        moved = [w.detach().double() - b for w, b in zip(weights, before, strict=True)]
        assert min(float(one.norm()) for one in moved) > 0.01
        shares[guard is not None] = [
            float((rows[name] @ one.T).norm() / (rows[name].norm() * one.norm()))
            for name, one in zip(LINEARS, moved, strict=True)
        ]
    assert max(shares[True]) <= (1 - energy) ** 0.5
    assert min(shares[False]) > (1 - energy) ** 0.5


def test_every_behavior_keeps_its_energy_with_the_fewest_directions() -> None:
    made = torch.Generator().manual_seed(5)
    one = torch.randn(40, 12, generator=made) * torch.logspace(0, -2, 12)
    two = 1e-2 * torch.randn(40, 12, generator=made) * torch.logspace(-2, 0, 12)
    basis = extend_basis(torch.zeros(12, 0), one.T @ one, 0.97)
    torch.testing.assert_close(
        projector(basis).double(), projector(main_directions(one.double(), 0.97)), atol=1e-3, rtol=0
    )
    both = extend_basis(basis, two.T @ two, 0.97)
    assert torch.equal(both[:, : basis.shape[1]], basis)
    torch.testing.assert_close(both.T @ both, torch.eye(both.shape[1]), atol=1e-5, rtol=0)
    held = [
        float((two @ part).square().sum() / two.square().sum()) for part in (both, both[:, :-1])
    ]
    assert held[0] >= 0.97 > held[1]  # a small behavior is not drowned by a large one
    assert extend_basis(both, two.T @ two, 0.97) is both
    assert extend_basis(basis, torch.zeros(12, 12), 0.97) is basis


def test_two_sides_also_leave_out_where_margins_look() -> None:
    model = start().double()
    one = guard_of_first()
    margins = one.margins
    outputs: list[Tensor] = []
    handle = model.head.register_forward_hook(lambda *arguments: outputs.append(arguments[2]))  # type: ignore[union-attr]
    (error,) = torch.autograd.grad(margins(model, one.probes).sum(), outputs)  # type: ignore[union-attr]
    handle.remove()
    basis = main_directions(error.reshape(-1, 20), 0.8)
    assert 0 < basis.shape[1] < 20
    run = Run(guards.TwoSidedGPM(["first"], energy=0.8, free=0.0))
    inside = main_directions(read(slice(0, 12))["head.weight"], 0.8)
    seen = []

    def check(*_: object) -> None:
        gradient = run.model.head.weight.grad.double()  # type: ignore[union-attr]
        size = gradient.norm()
        seen.append(
            (float((basis.T @ gradient).norm() / size), float((gradient @ inside).norm() / size))
        )

    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.optimizer.register_step_pre_hook(check)
        for ids, targets in lessons(3):
            run.step(ids, targets)
    assert len(seen) == 3
    assert max(max(pair) for pair in seen) < 1e-4


def guard_of_first() -> Behavior:
    from guards.cases import behaviors

    return behaviors()[0]


def words(floor: float = 0.01) -> Behavior:
    rows = make_tokenizer()(PROMPTS).input_ids  # of different lengths: padded
    return Behavior.next_token("words", rows, [token("sorry")] * len(PROMPTS), floor=floor)


def trained(model: nn.Module, guard: guards.Guard | None, steps: int = 2) -> nn.Module:
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, lr=0.05)
    ids = torch.randint(6, 40, (4, 9), generator=torch.Generator().manual_seed(1))
    with monitor_of([words()]).watch(model, optimizer, guard=guard):
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    return model


def test_weights_of_conv1d_lie_the_other_way() -> None:
    """The first layer's inputs on each prompt alone, without padding."""
    before = make_gpt2().eval()  # no dropout, as probes are read
    rows: list[Tensor] = []
    layer = before.transformer.h[0].attn.c_attn
    handle = layer.register_forward_hook(lambda *arguments: rows.append(arguments[1][0][0]))
    with torch.no_grad():
        for prompt in make_tokenizer()(PROMPTS).input_ids:
            before(torch.tensor([prompt]))
    handle.remove()
    basis = main_directions(torch.cat(rows).double(), 0.97)
    assert basis.shape[1] < 16
    moved = []
    for guard in (None, guards.GPM(free=0.0)):
        after = trained(make_gpt2(), guard).transformer.h[0].attn.c_attn  # type: ignore[union-attr]
        moved.append((after.weight - layer.weight).detach().double())
    shares = [float((basis.T @ one).norm() / one.norm()) for one in moved]
    assert shares[0] > 0.1
    assert shares[1] < 1e-3


def test_of_an_adapter_a_is_covered_and_b_can_learn() -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> nn.Module:
        torch.manual_seed(3)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(make_llama(), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.5)
        return model

    guard = guards.GPM(free=0.0)
    start, end = dict(adapted().named_parameters()), trained(adapted(), guard)
    names = [name for name, p in start.items() if p.requires_grad]
    assert len(guard.input_bases) == sum("lora_A" in name for name in names) == len(names) // 2
    for at, name in enumerate(names):
        moved = end.get_parameter(name).detach() - start[name].detach()
        assert float(moved.norm()) > 0
        if "lora_A" in name:
            assert float((moved @ guard.input_bases[at]).norm()) < 1e-3 * float(moved.norm())


def test_the_moments_leave_out_padding_and_no_trace() -> None:
    model = make_llama()
    parameters = list(model.parameters())
    layers = probing.linear_layers(model, parameters)
    together = probing.layer_moments(words(), model, layers, errors=True)
    apart = [probing.layer_moments(words().subset([i]), model, layers, True) for i in range(4)]
    assert len(together.inputs) == len(together.errors) == 3 * 7 + 1
    for at, moment in together.inputs.items():
        summed = sum(one.inputs[at] for one in apart)
        torch.testing.assert_close(moment, summed, atol=1e-3, rtol=1e-3)
        errors = sum(one.errors[at] for one in apart)
        torch.testing.assert_close(together.errors[at], errors, atol=1e-2, rtol=1e-2)
    assert model.training
    assert all(p.grad is None for p in parameters)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_full_bases_are_reported_and_uncovered_models_are_refused() -> None:
    run = Run(guards.GPM(energy=1.0, free=0.0)).go(lessons(1))
    assert "have no free direction" in run.monitor.actions[0].detail
    for energy in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="must lie in"):
            guards.GPM(energy=energy, free=0.0)
    run = Run(guards.GPM(free=0.0))
    for name, parameter in run.model.named_parameters():
        parameter.requires_grad_(name not in LINEARS)
    run.optimizer = torch.optim.SGD([p for p in run.model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ConfigError, match="no linear layer with a trained weight"):
        run.go(lessons(1))
    run = Run(guards.TwoSidedGPM(free=0.0))
    run.monitor = monitor_of([Behavior("d", OLD, lambda m, ids: last(m, ids)[:, 0].detach())])
    with pytest.raises(ConfigError, match="no output gradient"):
        run.go(lessons(1))
