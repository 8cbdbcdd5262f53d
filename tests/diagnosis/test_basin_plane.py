"""The basin on a plane, and at several checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diagnosis.test_basin import WORDS, Bowl, edges, same, state, watching
from riprap.diagnosis.basins._plane import basin_drift, basin_plane
from riprap.diagnosis.basins._sweep import basin
from riprap.errors import ConfigError
from tiny import make_llama


def test_a_bowl_is_round_on_a_plane() -> None:
    """‖α d₁ + β d₂‖ = √(α² + β²) ‖θ‖ only where the two are orthogonal and of one length."""
    model, counts = Bowl(), []
    before = state(model)
    found = basin_plane(
        model,
        [edges("a", 0.22, floor=0.8), edges("b", 0.4, 0.42)],
        points=9,
        progress=lambda *c: counts.append(c),
    )
    away = np.hypot(*np.meshgrid(found.alphas, found.alphas))
    assert np.array_equal(found.scores["a"], away < 0.22)
    assert found.margins["b"] == pytest.approx(0.41 - away, abs=1e-5)
    assert found.floors == {"a": 0.8, "b": 0.9}
    assert counts == [(done, 81) for done in range(1, 82)]
    assert same(model, before)


def test_the_planes_first_axis_is_the_first_direction() -> None:
    model = make_llama()
    plane = basin_plane(model, [WORDS], points=3, seed=2)
    line = basin(model, [WORDS], 1, points=3, seed=2)["words"]
    assert np.array_equal(plane.scores["words"][:, 1], line.scores[0])


def test_the_basin_drifts_with_the_checkpoints() -> None:
    """Each basin equals the one measured alone; the model is restored."""
    model, there = Bowl(), Bowl()
    with torch.no_grad():
        there.weight.mul_(1.2)
    asked = [edges("a", 0.13, 0.32)]
    before, counts = state(model), []
    checkpoints = {
        "start": dict(model.named_parameters()) | {"weight": model.weight.detach().clone()},
        "later": dict(there.named_parameters()),
    }
    found = basin_drift(
        model, checkpoints, asked, 2, points=11, progress=lambda *c: counts.append(c)
    )
    assert same(model, before)
    assert counts == [(done, 40) for done in range(1, 41)]
    assert list(found) == ["start", "later"]
    for label, alone in (("start", model), ("later", there)):
        assert np.array_equal(
            found[label]["a"].scores, basin(alone, asked, 2, points=11)["a"].scores
        )
    assert found["later"]["a"].start == 0.5
    assert found["start"]["a"].start == 1


def test_directions_are_the_same_at_each_checkpoint() -> None:
    seen: list[Tensor] = []
    model = make_llama()
    twice = {name: 2 * part.detach() for name, part in model.named_parameters()}
    own = {name: part.detach().clone() for name, part in model.named_parameters()}
    watch = watching(lambda m: seen.append(m.lm_head.weight.detach().clone()))
    basin_drift(model, {"one": own, "two": twice}, [watch], 1, points=3)
    center, _, up, center_two, _, up_two = seen
    assert torch.allclose(2 * (up - center), up_two - center_two, atol=1e-5)
    with pytest.raises(ConfigError, match="no weight"):
        basin_drift(model, {"other": {}}, [watch], 1)
