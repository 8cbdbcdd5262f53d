"""Methods of `selection_cost.py`: training steps that select rows, by Riprap and by others.

Each method is a context manager (model, optimizer) -> step. The step trains on one batch and
returns the norms of the rows' gradients, shape (rows,), or None if it computes none. Methods of
other packages select the rows whose norms are nearest to the median.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from riprap.selection import Scores, Selector, gradient_norms, strategies

RATIO = 0.2
Step = Callable[[Any], Tensor | None]
Method = Callable[[Any, Any], AbstractContextManager[Step]]


def trained(model: Any) -> list[Any]:
    """Return the trainable parameters."""
    return [p for p in model.parameters() if p.requires_grad]


def nearest_to_median(norms: Tensor) -> list[int]:
    """Return the rows to select, by a simple rule of the same cost as `moderate`."""
    order = (norms - norms.median()).abs().argsort()
    return sorted(order[: int(RATIO * len(norms))].tolist())


def shares(batch: Any) -> Tensor:
    """Return each row's weight in the mean loss over all response tokens, shape (rows,)."""
    counts = (batch["labels"][:, 1:] != -100).sum(1)
    return counts / counts.sum()


def write_and_step(model: Any, optimizer: Any, grads: list[Tensor]) -> None:
    """Step the optimizer on the given gradients."""
    for parameter, grad in zip(trained(model), grads, strict=True):
        parameter.grad = grad
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def plain(model: Any, optimizer: Any) -> Iterator[Step]:
    """Train on all rows."""

    def step(batch: Any) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    yield step


class _NotingModerate(strategies.Moderate):
    """`moderate`, which notes the norms that it is given."""

    norms: Any = None

    def candidates(self, scores: Scores) -> Any:
        return super().candidates(scores)

    def choose(self, scores: Scores, count: int, rng: Any) -> Any:
        self.norms = scores.norm
        return super().choose(scores, count, rng)


def selected(strategy: str) -> Method:
    """Return a method that attaches a selector."""

    @contextmanager
    def attach(model: Any, optimizer: Any) -> Iterator[Step]:
        noting = _NotingModerate()
        chosen = noting if strategy == "moderate" else strategy
        with Selector(chosen, RATIO).attach(model, optimizer), plain(model, optimizer) as train:

            def step(batch: Any) -> Tensor | None:
                train(batch)
                return None if noting.norms is None else torch.tensor(noting.norms)

            yield step

    return attach


@contextmanager
def norms_alone(model: Any, _optimizer: Any) -> Iterator[Step]:
    """Compute norms with Riprap, outside of training."""
    yield lambda batch: gradient_norms(model, batch)


@contextmanager
def sequential(model: Any, optimizer: Any) -> Iterator[Step]:
    """Run one backward pass per sample, and average the gradients of the selected samples."""

    def step(batch: Any) -> Tensor:
        grads = []
        for row in range(len(batch["input_ids"])):
            model(**{key: value[row : row + 1] for key, value in batch.items()}).loss.backward()
            grads.append([p.grad for p in trained(model)])
            model.zero_grad()
        norms = torch.stack([torch.stack(torch._foreach_norm(own)).norm() for own in grads])
        chosen = [grads[row] for row in nearest_to_median(norms)]
        parts = [torch.stack(own).mean(0) for own in zip(*chosen, strict=True)]
        write_and_step(model, optimizer, parts)
        return norms

    yield step


@contextmanager
def opacus(model: Any, optimizer: Any) -> Iterator[Step]:
    """Let Opacus store per-sample gradients, and average those of the selected samples."""
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model, strict=False)

    def step(batch: Any) -> Tensor:
        wrapped(**batch).loss.backward()
        samples = [p.grad_sample for p in trained(model)]  # of the mean loss, times the rows
        norms = torch.stack([own.flatten(1).norm(dim=1) for own in samples]).norm(dim=0)
        norms = norms / (shares(batch) * len(norms))
        rows = nearest_to_median(norms)
        for p in trained(model):
            p.grad_sample = None
        write_and_step(model, optimizer, [own[rows].mean(0) for own in samples])
        return norms

    yield step
    wrapped.to_standard_module()


@contextmanager
def func(model: Any, optimizer: Any) -> Iterator[Step]:
    """Compute per-sample gradients with torch.func and vmap."""
    from torch.func import functional_call, grad, vmap

    def loss(parameters: Any, ids: Tensor, labels: Tensor) -> Tensor:
        given = {"input_ids": ids[None], "labels": labels[None]}
        result: Tensor = functional_call(model, parameters, (), given).loss
        return result

    def step(batch: Any) -> Tensor:
        own = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        samples = vmap(grad(loss), (None, 0, 0), randomness="same")(
            own, batch["input_ids"], batch["labels"]
        )
        parts = [part.flatten(1).norm(dim=1) for part in samples.values()]
        norms = torch.stack(parts).norm(dim=0)
        rows = nearest_to_median(norms)
        write_and_step(model, optimizer, [part[rows].mean(0) for part in samples.values()])
        return norms

    yield step


def _dattri_config(model: Any) -> Any:
    from dattri_llm import REGISTER_ALL, HookManagerConfig
    from dattri_llm.utils.module import rms_norm_module_kwargs

    norms = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("RMSNorm") and module.weight.requires_grad
    }
    sizes = {
        name: rms_norm_module_kwargs(
            normalized_shape=module.weight.shape[0], eps=module.variance_epsilon
        )
        for name, module in norms.items()
    }
    return HookManagerConfig(
        linear_io=REGISTER_ALL,
        layer_types=dict.fromkeys(norms, "nn.RMSNorm"),
        module_kwargs=sizes,
    )


@contextmanager
def dattri(model: Any, optimizer: Any) -> Iterator[Step]:
    """Compute norms with dattri-llm's hooks; its callback removes the rows not selected."""
    from dattri_llm import DataSelectionCallback, HookManager
    from dattri_llm.gradient import ops
    from dattri_llm.gradient.callbacks.base import HookManagerCallback

    class SelectByNorm(HookManagerCallback):
        norms: Tensor

        def on_step_end(self, record: Any) -> None:
            gradient = record.gradient
            squares = [
                ops.grad_norm_sq(values, gradient.layer_types[name])
                for name, values in gradient.data.items()
            ]
            self.norms = torch.stack(squares).sum(0).sqrt() / self.shares
            kept = set(nearest_to_median(self.norms))
            dropped = [row for row in range(len(self.norms)) if row not in kept]
            by_layer = dict.fromkeys(gradient.data, dropped)
            DataSelectionCallback.remove_contributions(record, by_layer, model, renormalize=True)

        shares: Tensor

    callback = SelectByNorm()
    manager = HookManager(model, _dattri_config(model), [callback])
    with manager.collect(deregister_on_exit=True), plain(model, optimizer) as train:

        def step(batch: Any) -> Tensor:
            callback.shares = shares(batch)
            train(batch)
            return callback.norms

        yield step


@contextmanager
def dattri_own(model: Any, optimizer: Any) -> Iterator[Step]:
    """Select by dattri-llm's own score: the product with the batch's gradient."""
    from dattri_llm import DataSelectionCallback, HookManager

    options = {"threshold": 1 - RATIO, "threshold_mode": "bottom_fraction"}
    callback = DataSelectionCallback(model, renormalize=True, selection_kwargs=options)
    manager = HookManager(model, _dattri_config(model), [callback])
    with manager.collect(deregister_on_exit=True), plain(model, optimizer) as train:
        yield train


METHODS: dict[str, Method] = {
    "plain": plain,
    "moderate (exact)": selected("moderate"),
    "proxy": selected("proxy"),
    "random": selected("random"),
    "norms alone": norms_alone,
    "one backward per sample": sequential,
    "dattri-llm": dattri,
    "dattri-llm, own score": dattri_own,
    "Opacus": opacus,
    "torch.func": func,
}
PACKAGES = {"dattri-llm": "dattri_llm", "dattri-llm, own score": "dattri_llm", "Opacus": "opacus"}


def missing_package(method: str) -> str | None:
    """Return the package that a method needs and that is not installed."""
    package = PACKAGES.get(method)
    return package if package and importlib.util.find_spec(package) is None else None
