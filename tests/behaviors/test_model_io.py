"""Logits of any model, for all forms of output and wrappers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from riprap import Behavior, evaluation
from riprap.behaviors import TokenBatch, accepted_arguments, last_logits
from tiny import Bigram, make_llama

ROWS = [[3, 7, 9, 12], [8, 10], [5, 6, 7, 8, 9]]


class Wrapped(nn.Module):
    """Bigram model that returns its logits in another form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.inner, self.form = Bigram(), form
        with torch.no_grad():
            self.inner.table.normal_()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.form(self.inner(input_ids))


FORMS = {
    "tensor": lambda logits: logits,
    "tuple": lambda logits: (logits, "cache"),
    "mapping": lambda logits: {"loss": None, "logits": logits},
    "object": lambda logits: SimpleNamespace(logits=logits),
    "last position": lambda logits: logits[:, -1],
    "half precision": lambda logits: logits.bfloat16(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_output_is_read(form: str) -> None:
    model = Wrapped(FORMS[form])
    logits = last_logits(model, TokenBatch.pad(ROWS))
    expected = model.inner.table[[row[-1] for row in ROWS]]
    assert logits.dtype == torch.float32
    assert logits.shape == (3, 1, 47)
    torch.testing.assert_close(logits[:, 0], expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("wrap", ["peft", "compiled", "parallel"])
def test_arguments_of_wrapped_models_are_accepted(wrap: str) -> None:
    behavior = Behavior.next_token("words", ROWS, [9, 11, 30])
    expected = evaluation.evaluate(behavior, make_llama().eval()).margins
    model: Any = make_llama().eval()
    if wrap == "peft":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    elif wrap == "compiled":
        model = torch.compile(model, backend="eager")
    else:
        model = nn.DataParallel(model)
    assert {"attention_mask", "position_ids", "use_cache"} <= accepted_arguments(model)
    margins = evaluation.evaluate(behavior, model).margins
    np.testing.assert_allclose(margins, expected, rtol=1e-5, atol=1e-5)


def test_only_the_last_positions_are_computed_if_the_model_can() -> None:
    model, seen = make_llama(), []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    last_logits(model, TokenBatch.pad(ROWS), n_positions=2)
    assert seen == [2]


class Averaging(nn.Module):
    """Model that knows which tokens are padding only from its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(47, 47)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = (self.embed(input_ids) * mask[..., None]).cumsum(1)
        return seen / mask.cumsum(1).clamp(min=1)[..., None]


def test_the_mask_reaches_the_model() -> None:
    model = Averaging()
    together = last_logits(model, TokenBatch.pad(ROWS))
    for row, logits in zip(ROWS, together, strict=True):
        torch.testing.assert_close(logits, last_logits(model, TokenBatch.pad([row]))[0])


def test_padding_is_on_the_left_and_masked() -> None:
    batch = TokenBatch.pad(ROWS)
    assert batch.input_ids.tolist() == [[0, 3, 7, 9, 12], [0, 0, 0, 8, 10], [5, 6, 7, 8, 9]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [4, 2, 5]
    assert TokenBatch.pad([[1, 2], [3, 4]]).attention_mask is None


def test_selected_rows_lose_unneeded_padding() -> None:
    part = TokenBatch.pad(ROWS).select([1, 0])
    assert part.input_ids.tolist() == [[0, 0, 8, 10], [3, 7, 9, 12]]
    assert part.attention_mask is not None
    assert part.attention_mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert TokenBatch.pad(ROWS).select([1]).attention_mask is None


def test_joined_batches_keep_every_row() -> None:
    joined = TokenBatch.join([TokenBatch.pad([[1, 2]]), TokenBatch.pad(ROWS)])
    assert joined.input_ids[0].tolist() == [0, 0, 0, 1, 2]
    assert joined.attention_mask is not None
    assert joined.attention_mask.sum(1).tolist() == [2, 4, 2, 5]
    plain = TokenBatch.join([TokenBatch.pad([[1, 2]]), TokenBatch.pad([[3, 4]])])
    assert plain.attention_mask is None
    assert plain.input_ids.tolist() == [[1, 2], [3, 4]]
