"""`riprap.preflight`: predict what a data set will do to a model, on a copy of it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from riprap._checks import check_count, checked, is_number, shown
from riprap._distributed import has_sharded_parameters, unwrap_model, unwrap_optimizer
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.evaluation import preserve_rng, to_device
from riprap.prediction._optimizer_response import base_rate, rebuild
from riprap.prediction._predictor import (
    DEFAULT_CHECKPOINTS,
    DEFAULT_WARM_STEPS,
    Predictor,
    Progress,
)
from riprap.prediction._result import Preflight
from riprap.prediction._row_pass import summed_losses
from riprap.prediction._training import LossFn, Training
from riprap.selection import count_rows, forward_args

DEFAULT_ROWS = 512
DEFAULT_RATE = 1e-4


@checked
def preflight(
    model: nn.Module,
    batches: Iterable[Any],
    behaviors: Sequence[Behavior],
    *,
    optimizer: Optimizer | None = None,
    steps: int | None = None,
    schedule: Callable[[int], float] | Sequence[float] | None = None,
    loss: LossFn | None = None,
    max_grad_norm: float | None = None,
    warm_steps: int = DEFAULT_WARM_STEPS,
    checkpoints: int = DEFAULT_CHECKPOINTS,
    n_rows: int | None = DEFAULT_ROWS,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Preflight:
    """Predict which behaviors training on some rows will break, when, and by which rows.

    A copy of the model takes a few steps on the rows, because the first step misleads: a new
    adapter has no effect yet, and Adam no scales. The margins then go on at the pace that these
    steps have measured. The gradient of each row, multiplied with the gradient of a behavior's mean
    margin through the optimizer's preconditioner, says which rows do it, and how another mix of
    rows would change the pace. Model, optimizer and generators are left as they are.

    The harm of rows is of the first order, and the forecast is a line. Both ignore that gradients
    change later in training (rows that are learned stop to pull; a behavior may fall faster the
    weaker it is, and many stop to fall), the noise of single batches, weight decay, dropout in the
    scored rows, and weights that no warm step has reached. Probability and interval are those of a
    pace that may change by a factor, whose spread was fitted on recorded runs of other models.

    Args:
        batches: batches as training gets them; a step learns from one. Each is a mapping of the
            model's arguments with `labels`, or anything that `loss` takes.
        optimizer: the optimizer of this model; its settings and state are copied. None: AdamW at
            1e-4 without weight decay.
        steps: planned steps; None: one for each batch.
        schedule: rate of each step, counted from 0, as a factor of the optimizer's base rate; a
            function of the step, or a list. None: constant. The base rate of a parameter group is
            the rate with which the optimizer was made: its `initial_lr`, if it has a scheduler,
            else its `lr`. The full rate of a group is its base rate times the largest factor.
        loss: loss(model, batch) -> each row's own loss, shape (rows,); training takes its mean.
            None: the model's own, over the tokens of `labels`; training takes the mean of tokens.
        max_grad_norm: norm to which training clips its gradient; None: it does not clip.
        warm_steps, checkpoints: see `Predictor`.
        n_rows: score about so many rows, in batches drawn at random; None: all.
        seed: of the drawn batches and of the generators in the warm start.
        progress: called with the name of a stage, how much of it is done, and of how much.

    Under several ranks (`torch.distributed`) each rank gives the same arguments, scores a share of
    the batches, and gets the whole result.

    Raises:
        ConfigError: see `Predictor`; the batches are packed; the model is sharded; or the rates to
            come cannot be known from the optimizer and `schedule`.
    """
    model = unwrap_model(model)
    _check_arguments(batches, steps, n_rows, loss, max_grad_norm)
    if has_sharded_parameters(model):
        raise ConfigError(
            "the model is sharded over ranks, and a copy of it cannot be trained: give each rank "
            "the whole model, or run riprap preflight before the model is sharded"
        )
    listed = list(batches)
    sizes = [count_rows(forward_args(batch)) for batch in listed]
    planned = _planned_rates(schedule, len(listed) if steps is None else steps)
    with preserve_rng(model):
        torch.manual_seed(seed)
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.grad = None
        if not model.training:  # else single modules may be in evaluation mode on purpose
            twin.train()
        own = _copy_optimizer(optimizer, model, twin)
        _check_rates(own, planned, given=schedule is not None)
        drawn = _draw(sizes, n_rows, seed)
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        training = Training(
            twin,
            own,
            _stepper(twin, own, listed, loss, max_grad_norm),
            planned,
            [listed[at] for at in drawn],
            np.array([row for at in drawn for row in range(starts[at], starts[at + 1])], int),
            sum(sizes),
            max(1, round(float(np.mean(sizes)))) if sizes else 1,
            loss,
            max_grad_norm,
        )
        return Predictor(training, behaviors, warm_steps, checkpoints).run(progress)


def _check_arguments(batches: Any, steps: Any, n_rows: Any, loss: Any, max_grad_norm: Any) -> None:
    if isinstance(batches, Mapping | Tensor):
        raise ConfigError("batches is one batch: give a list of batches")
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise ConfigError(f"batches={shown(batches)}: give a list of batches")
    if steps is not None:
        check_count("steps", steps, otherwise=", or None for one for each batch")
    if n_rows is not None:
        check_count("n_rows", n_rows, otherwise=", or None for all rows")
    if loss is not None and not callable(loss):
        raise ConfigError(
            f"loss={shown(loss)}: give a function (model, batch) -> each row's loss, or None for "
            "the loss over `labels`"
        )
    if max_grad_norm is not None and not (is_number(max_grad_norm) and max_grad_norm > 0):
        raise ConfigError(
            f"max_grad_norm={shown(max_grad_norm)}: give a number above 0, or None for no clipping"
        )


def _planned_rates(schedule: Any, steps: int) -> np.ndarray:
    """Return the rate of each step as a factor of the optimizer's base rate."""
    if schedule is None:
        return np.ones(steps)
    if isinstance(schedule, str) or not (callable(schedule) or isinstance(schedule, Iterable)):
        raise ConfigError(
            f"schedule={shown(schedule)}: give a function of the step that returns a factor of the "
            "optimizer's base rate, or a list of these factors"
        )
    rates = [schedule(step) for step in range(steps)] if callable(schedule) else list(schedule)
    planned = np.asarray(rates, dtype=float)[:steps]
    if len(planned) < steps or not np.isfinite(planned).all() or (planned < 0).any():
        raise ConfigError(f"the schedule needs {steps} rates of at least 0, one for each step")
    if steps and planned.max() <= 0:
        raise ConfigError("the schedule has no rate above 0, so nothing would be learned")
    return planned


def _check_rates(optimizer: Optimizer, planned: np.ndarray, given: bool) -> None:
    """Check that the rates to come follow from the optimizer's groups and the planned factors.

    Args:
        given: the factors are the caller's; else they are all 1.

    Raises:
        ConfigError: they do not.
    """
    groups, name = optimizer.param_groups, type(optimizer).__name__
    if not all(isinstance(group.get("lr"), int | float | Tensor) for group in groups):
        raise ConfigError(f"{name} has no learning rate that is a number: give it one")
    if any("max_lr" in group for group in groups):
        raise ConfigError(
            f"a OneCycleLR is made on {name}, and it is not known of which rate the factors in the "
            "schedule are: give a new optimizer without it, at the largest rate, and "
            "schedule=[rate / largest rate of each step]"
        )
    if not given and any("initial_lr" in group for group in groups):
        raise ConfigError(
            f"{name} has a scheduler, and the rates to come cannot be read from its present one: "
            "give schedule=, a function that returns the factor of initial_lr in each step "
            "(schedule=lambda step: 1.0 if it is constant)"
        )
    largest = float(planned.max(initial=0.0))
    bases = {base_rate(group) for group in groups}
    if given and any(np.isclose(largest, base, rtol=1e-6, atol=0.0) for base in bases - {1.0}):
        raise ConfigError(
            f"the largest number in the schedule, {largest:g}, is the learning rate of {name} "
            "itself: give factors of that rate, 1.0 for the full one"
        )


def _copy_optimizer(optimizer: Any, model: nn.Module, twin: nn.Module) -> Optimizer:
    """Return a copy of an optimizer that steps the copy of its model."""
    if optimizer is None:
        trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
        if not trained:
            raise ConfigError("the model has no trainable parameter, so no row can harm it")
        return torch.optim.AdamW(trained, lr=DEFAULT_RATE, weight_decay=0.0)
    inner = unwrap_optimizer(optimizer)
    if not isinstance(inner, Optimizer):
        raise ConfigError(f"optimizer={shown(inner)}: give the torch.optim.Optimizer of the model")
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    twins = {id(one): two for one, two in pairs}
    if any(id(p) not in twins for group in inner.param_groups for p in group["params"]):
        raise ConfigError("the optimizer has parameters that are not the model's: make it anew")
    groups = [
        {**group, "params": [twins[id(p)] for p in group["params"]]} for group in inner.param_groups
    ]
    try:
        copied = rebuild(inner, groups)
        copied.load_state_dict(copy.deepcopy(inner.state_dict()))
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(
            f"{type(inner).__name__} cannot be copied ({error}): give SGD, Adam or AdamW"
        ) from error
    return copied


def _stepper(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Any],
    loss: LossFn | None,
    max_grad_norm: float | None,
) -> Callable[[], None]:
    """Return a function that takes one training step, on one batch after another."""
    order = itertools.cycle(batches)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def take_step() -> None:
        batch = to_device(next(order), parameters[0].device)
        with torch.enable_grad():
            values, tokens = summed_losses(model, batch, loss)
            (values.sum() / tokens.sum().clamp(min=1)).backward()  # type: ignore[no-untyped-call]
        if max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return take_step


def _draw(sizes: Sequence[int], n_rows: int | None, seed: int) -> list[int]:
    """Return the numbers of batches with about `n_rows` rows together, in their order."""
    if n_rows is None or sum(sizes) <= n_rows:
        return list(range(len(sizes)))
    order = np.random.default_rng(seed).permutation(len(sizes))
    count = int(np.searchsorted(np.cumsum(np.array(sizes)[order]), n_rows)) + 1
    return sorted(int(at) for at in order[:count])
