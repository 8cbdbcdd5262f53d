"""Other passes within a step, copies of the model, and several optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from riprap.errors import ConfigError
from riprap.integrations.hf import SelectionCallback
from riprap.selection import Selector
from selection.cases import batch, trained
from selection.test_loops import close, flat, plain, rows_of, sgd, training


def checkpointed(how: str) -> Any:
    model = training("lora")
    if how:
        model.gradient_checkpointing_enable({"use_reentrant": how == "reentrant"})
        model.enable_input_require_grads()
    return model


def reference(model: Any, given: dict) -> None:
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=given["input_ids"])


def evaluation(model: Any, given: dict) -> None:
    model.eval()
    with torch.no_grad():
        model(**given)
    model.train()


def metrics(model: Any, given: dict) -> None:
    with torch.no_grad():
        model(**given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["", "new", "reentrant"])
@pytest.mark.parametrize("between", [reference, evaluation, metrics])
def test_a_pass_between_forward_and_backward_changes_nothing(how: str, between: Any) -> None:
    model, given = checkpointed(how), batch()
    selector = Selector("moderate", 0.4)
    with selector.attach(model, sgd(model)):
        loss = model(**given).loss
        between(model, batch(5, seed=3))
        loss.backward()
        got = flat(model)
    assert close(got, plain(model, rows_of(given, selector.history[0].rows)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["", "new", "reentrant"])
@pytest.mark.parametrize("together", [True, False])
def test_two_passes_before_their_backward_are_told_apart(how: str, together: bool) -> None:
    """Layers that are run again belong to the pass whose backward it is, not to the last one."""
    model, parts = checkpointed(how), [batch(5, seed=1), batch(5, seed=2)]
    wanted: Tensor = sum(plain(model, given) for given in parts)
    accumulate = 1 if together else 2
    with Selector("moderate", 1.0).attach(model, sgd(model), accumulate=accumulate):
        losses = [model(**given).loss for given in parts]
        if together:
            sum(losses).backward()
        else:
            for loss in losses:
                loss.backward()
        assert close(flat(model), wanted)


def test_a_copy_of_the_model_trains_by_itself() -> None:
    """In the middle of a step, and from a pickle."""
    model, given = training("lora"), batch()
    wanted = plain(model, given)
    with Selector("moderate", 1.0).attach(model, sgd(model)):
        loss = model(**given).loss
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(file, weights_only=False),
        ):
            twin.train()(**given).loss.backward()
            assert close(flat(twin), wanted)
            assert all(p.grad is None for p in trained(model).values())
        loss.backward()
        assert close(flat(model), wanted)


def test_copies_of_selector_and_callback_are_attached_to_nothing() -> None:
    model = training("lora")
    selector = Selector("moderate", 0.4)
    callback = SelectionCallback(selector)
    with selector.attach(model, sgd(model)):
        model(**batch()).loss.backward()
        for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
            assert twin.selector.history == selector.history
            twin.selector.end()
        model(**batch()).loss.backward()
    assert len(selector.history) == 2


def test_several_optimizers_step_on_one_selection() -> None:
    model, given = training("lora"), batch()
    parameters = [*trained(model).values()]
    pair = [
        torch.optim.SGD(parameters[::2], lr=0.05),
        torch.optim.AdamW(parameters[1::2], lr=1e-3),
    ]
    selector = Selector("moderate", 0.4)
    before = [p.detach().clone() for p in parameters]
    with selector.attach(model, pair):
        for _ in range(2):
            model(**given).loss.backward()
            got = flat(model)
            for optimizer in pair:
                optimizer.step()
            for optimizer in pair:
                optimizer.zero_grad()
        assert selector.step == len(selector.history) == 2
        with pytest.raises(ConfigError, match="without a backward pass"):
            pair[1].step()
    assert got.isfinite().all()
    assert all(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_optimizers_that_cannot_work_are_refused_before_training() -> None:
    model = training("lora")
    parameters = [*trained(model).values()]
    lbfgs = torch.optim.LBFGS(parameters)
    with pytest.raises(ConfigError, match="several times in one step"):
        Selector().begin(model, lbfgs)
    with pytest.raises(ConfigError, match="empty"):
        Selector().begin(model, [])
    dummy = type("LayerWiseDummyOptimizer", (torch.optim.SGD,), {})(parameters, lr=0.1)
    with pytest.raises(ConfigError, match=r"steps inside backward\(\)"):
        Selector().begin(model, dummy)
    handle = parameters[0].register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ConfigError, match="post-accumulate-gradient hook"):
        Selector().begin(model, sgd(model))
    handle.remove()
    with Selector().attach(model, sgd(model)):
        pass


def test_a_closure_is_selected_from_and_must_run_backward() -> None:
    model, given = training("lora"), batch()
    optimizer, selector = sgd(model), Selector("moderate", 0.4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(**given).loss
        loss.backward()
        return loss

    with selector.attach(model, optimizer):
        optimizer.step(closure)
        assert len(selector.history) == selector.step == 1
        assert len(selector.history[0].rows) == 2
        with pytest.raises(ConfigError, match="without a backward pass"):
            optimizer.step(lambda: 0.0)
