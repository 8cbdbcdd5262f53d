"""One training pass over a batch: each row's loss, its weight in the loop's loss, its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from riprap.errors import ConfigError
from riprap.linalg import upcast
from riprap.selection._batches import ForwardArgs, count_rows, select_rows
from riprap.selection._grad_hooks import GradSampleAccumulator, make_graph_root
from riprap.selection._partial_backward import Candidates
from riprap.selection._proxy_score import error_norms
from riprap.selection._row_check import project_outputs
from riprap.selection._row_losses import (
    IGNORE_INDEX,
    RowLosses,
    RowLossFn,
    losses_from_graph,
    named_arguments,
    next_token_targets,
    output_field,
    row_losses,
    without_labels,
)
from riprap.selection._scores import Array, Scores

NOT_A_WEIGHTED_MEAN = (
    "the training loss is not a weighted mean of the rows' own losses (label smoothing, an "
    "auxiliary loss, or a loss of another kind): give losses=, a function (output, inputs) -> each "
    "row's loss"
)


def detach_outputs(output: Any) -> Any:
    """Detach the floating-point tensors of an output; each becomes the start of a new graph."""

    def detach(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            with torch.enable_grad():
                return make_graph_root(value.detach())
        return value

    return tree_map(detach, output)


@dataclass
class BatchPass:
    """One forward and backward pass over a batch.

    Attributes:
        call: the arguments of the forward pass.
        row_ids: name of each row.
        accumulator: per-sample gradients; None if no backward pass runs over the whole batch.
        wanted: rows whose gradients are computed; None: all rows.
        weights: w_i, so that w_i ∇L_i is the row's part of the loop's gradient, shape (rows,).
    """

    model: nn.Module
    call: ForwardArgs
    losses: RowLossFn | None
    needs_proxy: bool
    row_ids: list[Any]
    accumulator: GradSampleAccumulator | None = None
    wanted: Candidates | None = None
    weights: Tensor = field(init=False)
    _row_losses: RowLosses = field(init=False)
    _proxy: Tensor | None = None
    _output: Any = None
    _fused: bool = False
    _loss: Tensor | None = None
    _loss_grad: Tensor | None = None
    _in_half_precision: bool = False
    _input_grads: dict[int, Tensor] = field(default_factory=dict)
    _other_loss_seen: bool = False
    _measured: Array | None = None
    _starts_at_loss: bool = False
    _grads_at_targets: Tensor | None = None

    def __post_init__(self) -> None:
        self.n_rows = count_rows(self.call)
        kind = next(self.model.parameters()).device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self._autocast, self._autocast_options = enabled, (kind, dtype, enabled)
        self._named = named_arguments(self.model, self.call)

    @torch.no_grad()
    def read_output(self, output: Any) -> None:
        """Compute each row's loss from the model's output."""
        self._output = output
        loss = output_field(output, "loss")  # trainers scale it in place
        self._loss = loss.detach().clone() if isinstance(loss, Tensor) else None
        self._fused = output_field(output, "log_probs") is not None
        if self.needs_proxy and self.losses is None:
            self._row_losses, self._proxy = error_norms(self.model, output, self._named)
        else:
            known = None if self.losses is not None else losses_from_graph(loss, self._named)
            self._row_losses = known or row_losses(output, self._named, self.losses)
            if self.needs_proxy:
                self._proxy = error_norms(self.model, output, self._named)[1]
        shape = tuple(self._row_losses.values.shape)
        if shape != (self.n_rows,):
            raise ConfigError(
                f"the row losses have shape {shape}; the batch has {self.n_rows} rows, so shape "
                f"({self.n_rows},) is needed"
            )

    @property
    def trains_on_own_loss(self) -> bool:
        """Whether the backward pass has begun at the model's own loss."""
        return self._starts_at_loss

    def loss_scores(self) -> Scores:
        """Return the scores that are known before the backward pass."""
        losses = self._row_losses
        return Scores(_to_numpy(losses.values), _to_numpy(losses.n_tokens))

    def leave_out_all_but(self, rows: Array) -> None:
        """Compute the gradients of these rows only."""
        if self.wanted is not None and len(rows) < self.n_rows:
            self.wanted.set_rows(rows.tolist())
            self._measured = rows

    def register_hooks(self, on_backward_start: Callable[[BatchPass], None]) -> None:
        """Hook every output from which the loop may compute its loss.

        `on_backward_start` is called when the loop's backward pass begins.
        """
        loss = output_field(self._output, "loss")
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.register_hook(partial(self._on_loss_grad, on_backward_start))
        logits = output_field(self._output, "logits")
        inputs = _loss_inputs(self._output, self.n_rows)
        for index, value in enumerate(inputs):
            options = (index, on_backward_start, value is logits)
            value.register_hook(partial(self._on_input_grad, *options))
        self._in_half_precision = any(value.dtype.itemsize < 4 for value in inputs)

    def _on_loss_grad(self, on_start: Callable[[BatchPass], None], grad: Tensor) -> None:
        if self._loss_grad is None:
            self._starts_at_loss = True
            self._output = None  # logits are large, and only losses of the loop need them
            on_start(self)
            self._loss_grad = grad.detach()
        else:
            self._loss_grad = self._loss_grad + grad.detach()

    def _on_input_grad(
        self, index: int, on_start: Callable[[BatchPass], None], is_logits: bool, grad: Tensor
    ) -> None:
        if self._loss_grad is not None:  # the model's own loss has a gradient in its own logits
            self._other_loss_seen = True
            if is_logits and self._row_losses.target_probs is not None:
                sums = self._sum_at_targets(grad)
                earlier = self._grads_at_targets
                self._grads_at_targets = sums if earlier is None else earlier + sums
            return
        if not self._input_grads:
            on_start(self)
        self._input_grads[index] = grad.detach()

    def _sum_at_targets(self, grad: Tensor) -> Tensor:
        """Sum the gradients in the target tokens' logits over positions, shape (rows,)."""
        targets = next_token_targets(self._named["labels"], self._named.get("shift_labels"))
        targets = targets.to(grad.device)
        at_targets = upcast(grad.detach().gather(2, targets.clamp(min=0)[..., None])[..., 0])
        return (at_targets * (targets != IGNORE_INDEX)).sum(1)

    def finish(self) -> None:
        """Compute the rows' weights in the loop's loss, after the backward pass."""
        own_loss = self._loss_grad is not None
        self.weights = self._weights_from_loss() if own_loss else self._weights_from_outputs()
        if self.accumulator is not None:
            self.accumulator.finish()
        self._output, self._input_grads = None, {}

    def _weights_from_loss(self) -> Tensor:
        """Compute the weights from the gradient in the model's own loss, Σ n_i L_i / N."""
        assert self._loss_grad is not None and self._loss is not None
        n_tokens, values = self._row_losses.n_tokens, self._row_losses.values
        items = self._named.get("num_items_in_batch")
        total = n_tokens.sum().clamp(min=1) if items is None else torch.as_tensor(items).sum()
        shares = n_tokens.to(values) / total.to(values)
        loss = self._loss.to(values)
        tolerance = self._tolerance()
        is_mean = torch.isclose((shares * values).sum(), loss, rtol=tolerance, atol=tolerance)
        if loss.isfinite() and not (is_mean and self._no_other_loss(total)):
            raise ConfigError(NOT_A_WEIGHTED_MEAN)
        return shares * self._loss_grad.to(values)

    def _no_other_loss(self, total: Tensor) -> bool:
        """Return whether the loop trains on no other loss beside the model's own."""
        if self.accumulator is None:  # the outputs are detached: the own loss reaches no other
            return not (self._other_loss_seen or self._input_grads)
        assert self._loss_grad is not None
        grads, target_probs = self._grads_at_targets, self._row_losses.target_probs
        if grads is None or target_probs is None or not grads.isfinite().all():
            return True
        per_token = self._loss_grad.double() / total.double()
        expected = per_token * (target_probs.double() - self._row_losses.n_tokens)
        tolerance = self._tolerance(2e-2) * per_token.abs() * self._row_losses.n_tokens
        return bool(((grads.double() - expected).abs() <= tolerance).all())

    def _tolerance(self, in_half_precision: float = 1e-2) -> float:
        return in_half_precision if self._autocast or self._in_half_precision else 1e-4

    def _weights_from_outputs(self) -> Tensor:
        """Compute the weights from the outputs' gradients: the loop's loss over each row's L_i."""
        output = detach_outputs(self._output)
        inputs = _loss_inputs(output, self.n_rows)
        with torch.enable_grad():
            values = row_losses(output, self._named, self.losses).values
            own_grads = torch.autograd.grad(values.sum(), inputs, allow_unused=True)
        dots = own_squares = loop_squares = torch.tensor(0.0)
        for index, own_grad in enumerate(own_grads):
            loop_grad = self._input_grads.get(index)
            own = None if own_grad is None else upcast(own_grad).flatten(1)
            loop = None if loop_grad is None else upcast(loop_grad).flatten(1)
            if own is not None:
                own_squares = own_squares + own.square().sum(1)
            if loop is not None:
                loop_squares = loop_squares + loop.square().sum(1)
            if own is not None and loop is not None:
                dots = dots + (own * loop).sum(1)
        weights = torch.where(own_squares > 0, dots / own_squares, 0.0)
        residual = (loop_squares - dots * weights).clamp(min=0)
        if bool((residual > self._tolerance() * loop_squares).any()):
            raise ConfigError(NOT_A_WEIGHTED_MEAN)
        return weights

    def scores(self, direction_names: list[str], behaviors: list[str]) -> Scores:
        """Return the scores of this pass; the directions named in `behaviors` give the harm.

        The accumulator holds w_i ∇L_i; the scores are those of ∇L_i.
        """
        weights = self.weights.double()
        nonzero = torch.where(weights == 0, 1.0, weights)
        # A row without a weight in the loop's loss cannot be selected.
        tokens = self._row_losses.n_tokens * (weights != 0).to(self._row_losses.n_tokens)
        scores = Scores(_to_numpy(self._row_losses.values), _to_numpy(tokens))
        scores.proxy = None if self._proxy is None else _to_numpy(self._proxy)
        if self.accumulator is not None:
            squares = torch.as_tensor(self.accumulator.squared_norms).double().clamp(min=0)
            scores.norm = _to_numpy(squares.sqrt() / nonzero.abs())
            if direction_names:
                products = torch.as_tensor(self.accumulator.dot_products).double() / nonzero
                pairs = zip(direction_names, products, strict=True)
                directional = {name: _to_numpy(values) for name, values in pairs}
                scores.harm = {name: -directional[name] for name in behaviors}
                scores.directional = {n: v for n, v in directional.items() if n not in behaviors}
        if self._measured is not None:
            scores.measured = self._measured
            others = np.setdiff1d(np.arange(self.n_rows), self._measured)
            for values in (scores.norm, *scores.harm.values(), *scores.directional.values()):
                if values is not None:
                    values[others] = np.nan
        return scores

    def run_rows(self, rows: list[int]) -> Tensor:
        """Run some rows, and return a projection of each row's outputs; see `RowChecker`."""
        call = select_rows(self.call, rows, self.n_rows)
        args, named = call if self._fused else without_labels(call)
        # The cache of the first pass holds casts of weights without requires_grad.
        with torch.autocast(*self._autocast_options, cache_enabled=False):
            output = self.model(*args, **named)
        return project_outputs(output, rows)

    def rerun_rows(
        self, rows: list[int], weights: Tensor, parameters: list[Tensor]
    ) -> list[Tensor | None]:
        """Compute Σ weights_i ∇L_i over some rows, by a second pass over these rows only.

        It uses `backward()`, because reentrant checkpointing hides parameters from `autograd.grad`.
        """
        call = select_rows(self.call, rows, self.n_rows)
        reads_labels = self.losses is not None or self._fused  # or it may read them
        args, named = call if reads_labels else without_labels(call)
        with torch.enable_grad():
            # The cache of the first pass holds casts of weights without requires_grad.
            with torch.autocast(*self._autocast_options, cache_enabled=False):
                output = self.model(*args, **named)
                inputs = named_arguments(self.model, call)
                values = row_losses(output, inputs, self.losses).values
            total = (values * weights.to(values)).sum()
            before = [parameter.grad for parameter in parameters]
            try:
                for parameter in parameters:
                    parameter.grad = None
                total.backward()  # type: ignore[no-untyped-call]
                return [parameter.grad for parameter in parameters]
            finally:
                for parameter, grad in zip(parameters, before, strict=True):
                    parameter.grad = grad


def _to_numpy(values: Tensor) -> Any:
    return values.detach().double().cpu().numpy()


def _loss_inputs(output: Any, n_rows: int) -> list[Tensor]:
    """Return the output's tensors with a row for each sample, from which a loss may be computed."""
    tensors = [value for value in tree_flatten(output)[0] if isinstance(value, Tensor)]
    return [t for t in tensors if t.requires_grad and t.dim() > 0 and len(t) == n_rows]
