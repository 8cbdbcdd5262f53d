"""The basin against results by hand, and against an independent float64 sweep."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from riprap import Behavior
from riprap.behaviors import Margins
from riprap.diagnosis.basins._perturbation import (
    BLOCK_SIZE,
    blocks,
    perturbed_parameters,
    perturbed_weights,
)
from riprap.diagnosis.basins._sweep import basin
from riprap.errors import BehaviorError, ConfigError, RiprapError
from tiny import Classifier, PlainLM, make_gpt2, make_llama

IDS = torch.randint(3, 40, (6, 5), generator=torch.Generator().manual_seed(1))
WORDS = Behavior.next_token("words", IDS, [9, 11, 30, 12, 7, 8], floor=0.5)


class Bowl(nn.Module):
    """‖w − start‖ / ‖start‖ is |α| along every direction: its basin is known exactly."""

    def __init__(self, rows: int = 40) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(rows, 50, generator=torch.Generator().manual_seed(0))
        )
        self.register_buffer("start", self.weight.detach().clone())

    def forward(self) -> Tensor:
        return (self.weight - self.start).norm() / self.start.norm()


def edges(name: str, *reach: float, floor: float = 0.9) -> Behavior:
    """Probes that break at these |α|."""
    return Behavior(name, torch.tensor(reach), lambda model, at: at - model(), floor)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: part.clone() for name, part in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return all(torch.equal(now[name], part) for name, part in before.items())


def watching(act: Callable[[nn.Module], None], name: str = "watching") -> Behavior:
    """A behavior that always passes, and lets a test see the model at each point."""

    def margins(model: nn.Module, probes: Tensor) -> Tensor:
        act(model)
        return probes

    return Behavior(name, torch.ones(1), margins)


def places(model: nn.Module, **options: Any) -> list[dict[str, Tensor]]:
    """The weights at each point of one direction: the checkpoint first, then from −α to α."""
    seen: list[dict[str, Tensor]] = []
    basin(model, [watching(lambda m: seen.append(state(m)))], 1, points=3, **options)
    return seen


def test_a_bowl_has_the_scores_visage_and_width_that_can_be_worked_out() -> None:
    found = basin(Bowl(), [edges("both", 0.12, 0.33), edges("wide", 0.9)], 3)
    both, wide = found["both"], found["wide"]
    away = np.abs(both.alphas)
    expected = ((away < 0.12).astype(float) + (away < 0.33)) / 2
    assert both.scores.tolist() == [expected.tolist()] * 3
    # 5 points within 0.12, 13 within 0.33; beyond, all probes are broken and nothing counts.
    assert both.visage.mean == pytest.approx((5 + 8 * 0.5) / 13)
    assert both.mean_score.mean == pytest.approx((5 + 8 * 0.5) / 21)
    # The score falls from 1 at 0.10 to 0.5 at 0.15: through 0.9 at a fifth of the way.
    assert both.widths == pytest.approx(np.full((3, 2), 0.11))
    assert both.width.low == pytest.approx(both.width.high) == pytest.approx(0.11)
    assert both.unbounded_share == 0
    assert found.width.mean == pytest.approx(0.11)
    assert wide.visage.mean == 1 == wide.unbounded_share
    assert wide.width.mean == 0.5 == -wide.alphas[0]
    assert both.curve[10].mean == 1 == both.start


def test_a_checkpoint_that_is_broken_has_no_basin() -> None:
    found = basin(Bowl(), [edges("gone", -1.0)], 2, points=5)["gone"]
    assert found.start == 0 == found.visage.mean == found.width.mean == found.unbounded_share


def test_scores_are_those_of_an_independent_sweep_in_float64() -> None:
    model = PlainLM(size=41).double()
    with torch.no_grad():
        model.head.weight.mul_(20)
    targets = model(IDS)[:, -1].argmax(-1)
    held = Behavior.next_token("held", IDS, targets)
    found = basin(model, [held], 2, points=7, seed=5)["held"]

    first = int(np.random.SeedSequence(5).generate_state(1)[0])
    names = list(dict(model.named_parameters()))
    for number in range(2):
        for at, alpha in enumerate(np.linspace(-0.5, 0.5, 7)):
            other = copy.deepcopy(model)
            for index, name in enumerate(names):
                part = other.get_parameter(name)
                seed = (first + number * len(names) + index) % 2**32
                noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed))
                noise = noise.double()
                part.data += alpha * noise / noise.norm() * part.data.norm()
            kept = (other(IDS)[:, -1].argmax(-1) == targets).double().mean()
            assert found.scores[number, at] == pytest.approx(float(kept))
    assert found.scores.min() < 0.7 < found.start == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_llama(),
        lambda: make_llama(tie_word_embeddings=True),
        lambda: make_llama().to(torch.bfloat16),
        lambda: make_llama().half(),
        lambda: make_gpt2(),
    ],
    ids=["llama", "tied", "bfloat16", "float16", "gpt2"],
)
def test_a_direction_is_as_long_as_each_weight_and_norms_stay(make: Callable[[], Any]) -> None:
    model = make()
    before = state(model)
    down, up = places(model)[1:]
    assert same(model, before)
    rounding = 20 * torch.finfo(next(model.parameters()).dtype).eps
    moves = perturbed_parameters(model)
    assert any("norm" in name or "ln_" in name for name in before)
    for name in dict(model.named_parameters()):
        away = up[name].double() - before[name].double()
        if "norm" in name or "ln_" in name:
            assert name not in moves
            assert not away.any()
            continue
        assert name in moves
        back = down[name].double() - before[name].double()
        size = before[name].double().norm()
        assert float(away.norm()) == pytest.approx(0.5 * float(size), rel=rounding)
        assert torch.allclose(away, -back, atol=rounding * float(before[name].abs().max() + 1))


def test_norm_layers_are_recognized_by_class_for_any_shape() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm((2, 4)), *Classifier(4).layers)
    assert list(perturbed_parameters(model)) == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
        "6.weight",
        "6.bias",
    ]


def test_an_adapter_stays_and_what_it_is_added_to_moves_like_the_merged_weight() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(make_llama(), config)
    plain = make_llama()  # the same base: adapters were drawn after it
    assert [n.split(".")[-1] for n in perturbed_parameters(adapted)] == [
        n.split(".")[-1] for n in perturbed_parameters(plain)
    ]
    before = {name: part.clone() for name, part in adapted.named_parameters()}
    up, plain_up = places(adapted)[2], places(plain)[2]
    name = "model.layers.1.self_attn.q_proj"
    under = f"base_model.model.{name}.base_layer.weight"
    assert torch.equal(up[under], plain_up[f"{name}.weight"])
    assert not torch.equal(up[under], before[under])
    for lora in (name for name in before if "lora_" in name):
        assert torch.equal(up[lora], before[lora])


def test_weights_of_many_blocks_and_of_any_layout_move_and_come_back() -> None:
    generator = torch.Generator().manual_seed(3)
    model = nn.Module()
    model.wide = nn.Parameter(torch.randn(3, BLOCK_SIZE // 2 + 7, generator=generator))
    model.turned = nn.Parameter(torch.randn(20, 30, generator=generator).t())
    model.one = nn.Parameter(torch.tensor(2.0))
    model.none = nn.Parameter(torch.zeros(0, 4))
    model.zero = nn.Parameter(torch.zeros(5))
    assert len(list(blocks(model.wide))) == 3
    before = state(model)
    up = places(model)[2]
    assert same(model, before)
    for name in ("wide", "turned", "one"):
        size = float(before[name].norm())
        assert float((up[name] - before[name]).norm()) == pytest.approx(0.5 * size, rel=1e-5)
    assert not up["zero"].any()


def test_an_error_restores_the_model() -> None:
    model = make_llama()
    before, away = state(model), 0

    def stop(m: nn.Module) -> None:
        nonlocal away
        away += not same(m, before)
        if away == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        basin(model, [watching(stop)], 1)
    assert away == 2
    assert same(model, before)


def test_a_margin_function_that_changes_the_model_is_found_out() -> None:
    model = make_llama()

    def meddle(m: Any) -> None:
        m.model.norm.weight.data += 1

    with pytest.raises(RiprapError, match="bit by bit"):
        basin(model, [watching(meddle)], 1, points=3)


def test_non_finite_margins_count_as_broken_and_doubtful() -> None:
    def overflowing(model: nn.Module, probes: Tensor) -> Tensor:
        return torch.where(model() > 0.25, torch.tensor([torch.inf, torch.nan, 1.0]), probes)

    found = basin(Bowl(), [Behavior("b", torch.ones(3), overflowing)], 2, points=11)["b"]
    assert found.scores[0].tolist() == pytest.approx([1 / 3] * 3 + [1] * 5 + [1 / 3] * 3)
    assert found.doubtful == 2 * 6


def test_points_with_insufficient_margins_are_doubtful() -> None:
    def gated(model: nn.Module, probes: Tensor) -> Margins:
        return Margins(probes, "no format" if model() > 0.25 else "")

    found = basin(Bowl(), [Behavior("b", torch.ones(3), gated)], 1, points=11)["b"]
    assert found.doubtful == 6


def test_answers_are_judged_at_each_point_and_their_ranks_compared() -> None:
    model = Bowl()
    asked = [
        edges("a", 0.15, 0.25, 0.35, 0.45),
        edges("b", 0.15, 0.25, 0.35, 0.45),
        edges("c", 9.0),
    ]
    judges = {
        "a": lambda m: math.exp(-float(m())),
        "b": lambda m: float(m()),
        "c": lambda m: 1.0,
    }
    found = basin(model, asked, 2, points=11, judges=judges)
    assert found["a"].judged is not None
    assert found["a"].judged[0] == pytest.approx(np.exp(-np.abs(found["a"].alphas)))
    assert found["a"].agreement is not None
    assert found["a"].agreement.mean > 0.95
    assert found["b"].agreement is not None
    assert found["b"].agreement.mean < -0.95
    assert found["c"].agreement is None


def test_more_directions_begin_with_the_same_ones_and_seeds_differ() -> None:
    model = make_llama()
    few, many = (basin(model, [WORDS], n, points=5)["words"].scores for n in (2, 4))
    assert np.array_equal(few, many[:2])
    first, again, other = places(model), places(model), places(model, seed=1)
    name = "lm_head.weight"
    assert torch.equal(first[1][name], again[1][name])
    moves = [(place[1][name] - place[0][name]).flatten() for place in (first, other)]
    assert abs(float(torch.cosine_similarity(*moves, dim=0))) < 0.2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's accounts")
def test_memory_is_that_of_one_model() -> None:
    def resident(which: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024

    model = Bowl(800_000)  # 160 MB, in one weight
    with torch.no_grad():
        model.start = torch.ones(1)
    basin(Bowl(), [edges("a", 0.1)], 1, points=3)  # whatever is loaded at first use
    probes = Behavior("b", torch.ones(1), lambda model, probes: probes)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    basin(model, [probes], 1, points=3)
    assert resident("VmHWM") - before < 0.1 * 4 * model.weight.numel()


def test_what_cannot_work_is_refused_in_a_sentence() -> None:
    model = Bowl()
    one = edges("one", 0.2)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"points": 20}, "odd"),
        ({"points": 1}, "odd"),
        ({"radius": 0.0}, "radius"),
        ({"directions": 0}, "directions"),
        ({"behaviors": []}, "at least one"),
        ({"behaviors": [one, edges("one", 0.3)]}, "'one'"),
        ({"judges": {"two": lambda m: 1.0}}, "'two'"),
    ]
    for options, words in refused:
        with pytest.raises(ConfigError, match=words):
            basin(**({"model": model, "behaviors": [one], "directions": 1} | options))
    with pytest.raises(BehaviorError, match="from 0 to 1"):
        basin(model, [one], 1, judges={"one": lambda m: 3.0})
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match="'weight' has entries that are not finite"):
        basin(model, [one], 1)
    model.weight = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match="unquantized"):
        basin(model, [one], 1)


def test_directions_are_orthogonal_and_combine_linearly() -> None:
    """Orthogonal in each weight, up to rounding; a weight of one element has one direction only."""
    model = make_gpt2().double()
    model.scale = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    before = state(model)
    with perturbed_weights(model, 4) as place:
        ends = []
        for direction in (place.direction(0), place.orthogonal_to(0, 1)):
            place.apply((direction, 1.0))
            ends.append(state(model))
        place.apply((place.direction(0), 0.25), (place.orthogonal_to(0, 1), -0.5))
        between = state(model)
    for name in place.parameters:
        first, second = ((end[name] - before[name]).flatten() for end in ends)
        size = float(before[name].norm())
        assert float(first.norm()) == pytest.approx(size)
        assert abs(float(first @ second)) < 1e-7 * size**2 + 1e-12
        if name == "scale":
            assert not second.any()
        else:
            assert float(second.norm()) == pytest.approx(size)
        expected = before[name].flatten() + 0.25 * first - 0.5 * second
        assert torch.allclose(between[name].flatten(), expected, atol=1e-6 * (size + 1))
