"""Passes over probes run in training's own autocast state, with logits and margins in float32."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from riprap import Behavior, Monitor, evaluation
from riprap.errors import BehaviorError
from riprap.integrations.hf import MonitorCallback
from tiny import Classifier, make_llama

IDS = torch.randint(3, 47, (16, 7), generator=torch.Generator().manual_seed(2))
TARGETS = torch.randint(3, 47, (16,), generator=torch.Generator().manual_seed(3))
INPUTS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore:behavior .* before training")


def words() -> Behavior:
    return Behavior.next_token("words", input_ids=IDS, targets=TARGETS)


def expected(model: Any, autocast: bool) -> np.ndarray:
    """Margins with the body under bf16 autocast, or not, and the head in float32, by other code."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = model.model(IDS).last_hidden_state[:, -1]
    weight = model.lm_head.weight.detach().float()
    logits = (hidden.float() @ weight.T).double()
    right = functional.one_hot(TARGETS, logits.shape[-1]).bool()
    others = logits.masked_fill(right, float("-inf")).max(-1).values
    return (logits[right] - others).numpy()


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def accelerated() -> tuple[Any, Any]:
    model = make_llama().train()
    bare = copy.deepcopy(model)
    AcceleratorState._reset_state(reset_partial_state=True)  # that of an earlier test
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    return prepared, bare


def test_accelerates_autocast_is_that_of_the_probes_and_the_head_is_float32() -> None:
    model, bare = accelerated()
    forward = model.forward
    found = evaluation.evaluate(words(), model, list(model.parameters()))
    assert_close(found.margins, expected(bare, autocast=True))
    assert np.abs(found.margins - expected(bare, autocast=False)).max() > 1e-3
    assert all(bool(part.any()) for part in found.gradient)
    assert model.forward == forward
    assert model(IDS).logits.dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, torch.bfloat16])
def test_a_given_state_wins_over_accelerates(autocast: Any) -> None:
    model, bare = accelerated()
    found = evaluation.evaluate(words(), model, autocast=autocast).margins
    assert_close(found, expected(bare, autocast=bool(autocast)))


def test_trainer_with_bf16(tmp_path: Any) -> None:
    model = make_llama()
    bare = copy.deepcopy(model)
    monitor = Monitor([words()])
    rows = [{"input_ids": row, "labels": row} for row in IDS]
    options = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, bf16=True, learning_rate=0.0, **options
    )
    Trainer(model, arguments, train_dataset=rows, callbacks=[MonitorCallback(monitor)]).train()
    for margins in monitor.behavior_histories["words"].margins:
        assert_close(margins, expected(bare, autocast=True))


def train(model: nn.Module, optimizer: Any, autocast: bool, steps: int = 2) -> None:
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_loop_under_autocast_is_seen_and_said() -> None:
    model = make_llama().train()
    bare = copy.deepcopy(model)
    optimizer, monitor = torch.optim.SGD(model.parameters(), lr=0.0), Monitor([words()])
    hooks = len(model._forward_pre_hooks)
    with monitor.watch(model, optimizer):
        pickle.loads(pickle.dumps(model))
        with pytest.warns(UserWarning, match="training runs under bfloat16 autocast"):
            train(model, optimizer, autocast=True)
        assert len(model._forward_pre_hooks) == hooks
    first, *later = monitor.behavior_histories["words"].margins
    assert_close(first, expected(bare, autocast=False))
    assert later
    for margins in later:
        assert_close(margins, expected(bare, autocast=True))


def test_the_state_where_the_monitor_begins_counts_before_the_first_step() -> None:
    model = make_llama().train()
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluation.evaluate(words(), model).margins
        assert torch.is_autocast_enabled("cpu")
    assert_close(found, expected(model, autocast=True))
    assert_close(evaluation.evaluate(words(), model).margins, expected(model, autocast=False))


class Mixed(nn.Module):
    """A body in bf16 with a norm in float32: it runs only under autocast."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.norm = nn.Linear(8, 16).bfloat16(), nn.LayerNorm(16)
        self.head = nn.Linear(16, 4).bfloat16()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.up(inputs)))


def lead(model: nn.Module, inputs: Tensor) -> Tensor:
    logits = model(inputs)
    return logits[:, 0] - logits[:, 1]


def test_a_model_that_runs_only_under_autocast_is_watched() -> None:
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    monitor = Monitor([Behavior("lead", INPUTS, lead)], probe_every=1)
    with monitor.watch(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(INPUTS).float().square().mean()
            loss.backward()
            optimizer.step()
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    assert (history[history.signal == "interference"].value.abs() > 0).all()
    with pytest.raises(BehaviorError, match="does not run without autocast"):
        evaluation.evaluate(Behavior("lead", INPUTS, lead), model, autocast=False)


def test_the_output_layer_of_a_plain_model_is_found_and_computed_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).bfloat16()
    inputs = INPUTS.bfloat16()
    found = evaluation.evaluate(Behavior("lead", inputs, lead), model, list(model.parameters()))
    hidden = model[1](model[0](inputs)).float()
    logits = functional.linear(hidden, model[2].weight.float(), model[2].bias.float())
    wanted = (logits[:, 0] - logits[:, 1]).detach().double().numpy()
    np.testing.assert_allclose(found.margins, wanted, rtol=1e-6)
    assert model(inputs).dtype == torch.bfloat16
    assert all(bool(part.any()) for part in found.gradient)


def test_float32_without_autocast_is_computed_as_it_is() -> None:
    model = make_llama()
    wanted = copy.deepcopy(model).eval()(IDS).logits[:, -1].detach()
    found = evaluation.evaluate(words(), model).logits
    assert torch.equal(found, wanted)


def test_modules_called_by_their_parts_show_their_autocast_too() -> None:
    """As in Lightning, where training calls the model inside the module."""
    outer = nn.ModuleDict({"inner": Classifier()}).train()
    hook = evaluation.TrainingAutocast(outer)
    hook.attach()
    with torch.autocast("cpu", torch.bfloat16):
        outer["inner"](INPUTS)
    assert "under bfloat16 autocast" in hook.settle()
    assert not outer["inner"].layers[0]._forward_pre_hooks
