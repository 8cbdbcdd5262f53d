"""TopK cosine against numpy over all coordinates at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from riprap import Behavior, ReadingStatus
from riprap.errors import ConfigError
from riprap.signals import TopKCosine
from tiny import make_llama
from views import gradient_view, probe_view, values

IDS = torch.randint(3, 47, (4, 5), generator=torch.Generator().manual_seed(3))


def watched() -> list[Behavior]:
    bare = Behavior("bare", IDS, lambda m, ids: m(ids).logits[:, -1, 5])
    return [Behavior.next_token("words", IDS, [9, 11, 30, 12]), bare]


def flat(parts: list[Tensor]) -> np.ndarray:
    return np.concatenate([part.detach().double().numpy().ravel() for part in parts])


@pytest.mark.parametrize("k", [1, 40, 1000, 10**9])
def test_it_agrees_with_numpy(k: int) -> None:
    base, model = make_llama(seed=5, scale=5.0), make_llama(scale=5.0).eval()
    signal, view = TopKCosine(base.state_dict(), k), probe_view(0, watched(), model)
    signal.start(view)
    gradient = [torch.randn_like(p) for p in model.parameters()]
    found = values(
        signal.on_gradient(gradient_view(1, view.protected_gradients, gradient)), "cosine_topk"
    )
    gaps = np.abs(flat(list(model.parameters())) - flat(list(base.parameters())))
    top = np.argsort(-gaps)[:k]
    own = flat(view.protected_gradients.loss_gradients.vector("words", gradient))[top]
    task = flat(gradient)[top]
    expected = task @ own / np.linalg.norm(task) / np.linalg.norm(own)
    assert found.keys() == {"words"}
    assert found["words"] == pytest.approx(expected, rel=1e-4)


def test_only_the_moved_coordinates_count() -> None:
    model = make_llama().eval()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    base["lm_head.weight"][7] += 1
    signal, view = TopKCosine(base, k=16), probe_view(0, watched(), model)
    signal.start(view)
    gradient = [
        -g for g in view.protected_gradients.loss_gradients.vector("words", view.parameters)
    ]
    for (name, _), part in zip(model.named_parameters(), gradient, strict=True):
        if name == "lm_head.weight":
            part[7] *= -1
    found = values(
        signal.on_gradient(gradient_view(1, view.protected_gradients, gradient)), "cosine_topk"
    )
    assert found["words"] == pytest.approx(1)


def test_without_the_base_it_says_what_to_give() -> None:
    model, signal = make_llama().eval(), TopKCosine()
    view = probe_view(0, watched(), model)
    signal.start(view)
    stated = signal.on_probe_evaluation(view)
    assert [r.state for r in stated] == [ReadingStatus.NOT_RUN]
    assert "before=base.state_dict()" in stated[0].detail
    assert signal.on_gradient(gradient_view(1, view.protected_gradients, view.parameters)) == []


def test_a_behavior_without_losses_is_said_to_lack_them() -> None:
    model = make_llama().eval()
    signal, view = TopKCosine(make_llama(seed=5).state_dict()), probe_view(0, watched(), model)
    signal.start(view)
    assert [r.behavior for r in signal.on_probe_evaluation(view)] == ["bare"]


def test_a_base_of_another_model_is_refused() -> None:
    model = make_llama().eval()
    view = probe_view(0, watched(), model)
    base = make_llama(seed=5).state_dict()
    for wrong, said in (
        ({k: v for k, v in base.items() if "norm" not in k}, "no entry for the trained"),
        (base | {"lm_head.weight": torch.zeros(3, 3)}, r"shape \(3, 3\)"),
        (model.state_dict(), "equals the model's current weights"),
    ):
        with pytest.raises(ConfigError, match=said):
            TopKCosine(wrong).start(view)
    with pytest.raises(ConfigError, match="at least one"):
        TopKCosine(base, k=0)
