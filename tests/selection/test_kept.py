"""What a pass keeps for the sums over selected rows, and when the rows run a second time."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from riprap.selection import Selector
from riprap.selection._grad_factors import DenseGrad, EmbeddingGrad, OuterProductGrad, smaller_form
from riprap.selection._scoring import compute_grad_samples
from selection.cases import CASES, batch, make, trained
from selection.test_loops import close, flat, plain, rows_of, sgd, training


@pytest.mark.parametrize("name", CASES)
def test_sums_are_those_of_the_per_sample_gradients(name: str) -> None:
    kept = compute_grad_samples(make(name), batch(), keep=True)[1]
    for index in range(len(trained(make(name)))):
        samples = kept.grad_samples(index)
        assert samples is not None
        wanted = samples[[1, 3]].sum(0)
        got = kept.take_sum(index, [1, 3])
        assert got is not None
        assert (got - wanted).norm() <= 1e-12 * samples.norm()
        assert kept.take_sum(index, [1, 3]) is None  # and freed
    assert not kept.factors


@pytest.mark.parametrize(("length", "is_dense"), [(2, False), (40, True)])
def test_the_smaller_form_is_kept(length: int, is_dense: bool) -> None:
    torch.manual_seed(0)
    outer = OuterProductGrad(torch.randn(3, length, 8), torch.randn(3, length, 6))
    ids = torch.randint(10, (3, length))
    lookup = EmbeddingGrad(torch.randn(3, length, 8), ids, 10)
    for factor in (outer, lookup):
        kept = smaller_form(factor)
        assert isinstance(kept, DenseGrad) == is_dense
        assert torch.allclose(kept.squared_norm(), factor.squared_norm(), rtol=1e-5)
        assert torch.allclose(kept.materialize(), factor.materialize(), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("room", "checkpointing", "parts", "passes"),
    [
        (0, False, 1, 1),  # the layers' inputs live until the backward pass anyway
        (0, True, 1, 2),
        (0, False, 2, 4),
        (2**31, True, 1, 1),
        (2**31, False, 2, 2),
    ],
)
def test_selected_rows_run_again_only_to_save_memory(
    room: int, checkpointing: bool, parts: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riprap.selection._loop_hooks.MAX_KEPT_BYTES", room)
    model, given = training("tied llama"), batch(6)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    count: list[Any] = []
    selector = Selector("high", 0.7)
    with selector.attach(model, sgd(model), accumulate=parts):
        for step in range(2):  # the first step checks the rows
            count.clear()
            handle = model.register_forward_pre_hook(lambda *_: count.append(1))
            model.zero_grad()
            for part in torch.arange(6).chunk(parts):
                (model(**rows_of(given, part.tolist())).loss / parts).backward()
            handle.remove()
            got, rows = flat(model), selector.history[step].rows
    assert len(count) == passes
    if parts == 1:
        assert close(got, plain(model, rows_of(given, rows)))


def test_the_logits_are_freed_before_the_layers_run_backward() -> None:
    """They are the largest tensor of a small model, and a plain step frees them too."""
    model, given = training("lora"), batch()
    seen: list[bool] = []
    layer = next(m for m in model.modules() if type(m).__name__ == "LlamaDecoderLayer")

    def note_backward(_: Any, __: Any, out: Any) -> None:
        if out.requires_grad:
            out.register_hook(lambda _: seen.append(logits() is None))

    with Selector("moderate", 0.4).attach(model, sgd(model)):
        handle = layer.register_forward_hook(note_backward)
        output = model(**given)
        logits, loss = weakref.ref(output.logits), output.loss
        del output
        loss.backward()
        handle.remove()
    assert seen
    assert all(seen)
