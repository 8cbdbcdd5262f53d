"""Hooks that replace `.grad` with the gradient of the selected rows.

A pass is one forward of the model in training mode, and its backward. Rows are selected over the
optimizer's whole batch, at the end of the last backward pass of a step and inside `backward()`. The
gradient of the loop's own loss over the selected rows is then written to `.grad`, before gradient
clipping, a monitor or a guard reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from riprap._distributed import unwrap_model
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.linalg import Vector
from riprap.selection._batch_pass import BatchPass, detach_outputs
from riprap.selection._batches import layer_dims, pop_row_ids, refuse_wrapped, token_shape
from riprap.selection._ddp import RankSamples, all_gather_samples, all_reduce_mean
from riprap.selection._grad_hooks import PerSampleGradHooks
from riprap.selection._optimizers import LiveHook, require_optimizers
from riprap.selection._pairwise import pairwise_products
from riprap.selection._partial_backward import Candidates, PartialBackward
from riprap.selection._protected_directions import ProtectedDirections, apply_preconditioner
from riprap.selection._row_check import RowChecker
from riprap.selection._row_losses import RowLossFn
from riprap.selection._scores import Array, Scores
from riprap.selection.strategies import Strategy

# Of per-sample gradients. Above it, they are kept only if the layers' inputs live until the
# backward pass anyway, and only those of one pass; otherwise the selected rows run a second time.
MAX_KEPT_BYTES = 2**31
_NEEDS_BACKWARD = {"norm", "gram", "harm", "danger", "safety", "validation"}


class RowSelector(Protocol):
    """Interface of a selector that `LoopAttachment` uses; see `Selector`."""

    strategy: Strategy
    behaviors: list[Behavior]
    directions: dict[str, Vector]
    probe_every: int
    row_id: str | None
    scale: str
    step: int

    def candidates(self, scores: Scores) -> Array: ...

    def choose_and_record(self, scores: Scores, ids: list[Any]) -> Array: ...


class LoopAttachment:
    """Hooks on a model and its optimizer; see `Selector.attach`.

    Attributes:
        accumulate: backward passes before each step of the optimizer.
    """

    def __init__(
        self,
        selector: RowSelector,
        model: nn.Module,
        optimizer: Any,
        accumulate: int,
        losses: RowLossFn | None,
    ) -> None:
        self.selector, self.accumulate = selector, accumulate
        self.model, self.optimizers = unwrap_model(model), require_optimizers(optimizer)
        refuse_wrapped(self.model)
        self._losses = losses
        needs = selector.strategy.all_needs | set(selector.directions)
        self._needs_backward, self._needs_gram = bool(needs & _NEEDS_BACKWARD), "gram" in needs
        self._needs_proxy = "proxy" in needs
        self.grad_hooks = PerSampleGradHooks(self.model)
        self._row_checker = RowChecker(self.model, self.grad_hooks)
        self._partial = PartialBackward(self.model) if self._may_leave_out() else None
        self._n_forward = 0  # passes since the last backward pass
        self._directions = self._make_directions(needs_gradients="harm" in needs)
        self._pass: BatchPass | None = None
        self._passes_in_backward: list[BatchPass] = []
        self._finished_passes: list[BatchPass] = []
        self._n_backward, self._disabled = 0, False
        self._unstepped: set[int] = set()  # optimizers that have not stepped on the gradient
        self._step_counted = True
        self._ddp: DistributedDataParallel | None = None
        self._direction_names: list[str] = []
        before, after = self.model.register_forward_pre_hook, self.model.register_forward_hook
        self._handles = [
            before(LiveHook(self._before_forward), with_kwargs=True, prepend=True),
            after(LiveHook(self._after_forward), with_kwargs=True, always_call=True),
        ]
        for one in self.optimizers:
            self._handles.append(
                one.register_step_pre_hook(torch.compiler.disable(self._before_step))
            )
            self._handles.append(
                one.register_step_post_hook(torch.compiler.disable(self._after_step))
            )

    def _may_leave_out(self) -> bool:
        """Return whether rows that cannot be selected may be known before the backward pass."""
        return self._needs_backward and not self._needs_gram and self.accumulate == 1

    def _make_directions(self, needs_gradients: bool) -> ProtectedDirections | None:
        protected = (self.selector.behaviors, self.selector.directions)
        if not any(protected):
            return None
        parameters = self.grad_hooks.parameters
        try:
            return ProtectedDirections(*protected, self.model, parameters, needs_gradients)
        except Exception:
            self.grad_hooks.remove()
            if self._partial is not None:
                self._partial.remove()
            raise

    def remove(self) -> None:
        """Remove every hook; the model and the optimizer are as before."""
        self._recover()
        self.grad_hooks.remove()
        if self._partial is not None:
            self._partial.remove()
        for handle in self._handles:
            handle.remove()
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = True
        self._passes_in_backward, self._finished_passes = [], []

    def _recover(self) -> None:
        """Do the work of `_after_forward` after an interrupt, which calls no hook."""
        if self._pass is not None and self._pass.accumulator is None:
            torch.set_grad_enabled(True)
        self._pass = None
        self.grad_hooks.recover()
        if self._partial is not None:
            self._partial.recover()

    # The pass

    def _before_forward(self, model: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        if self._disabled:
            return None
        self._recover()
        if not model.training or not torch.is_grad_enabled():
            return None
        self._passes_in_backward = []
        self._disable_ddp_sync()
        named = dict(named)
        ids = pop_row_ids(named, self.selector.row_id)
        batch_pass = BatchPass(self.model, (args, named), self._losses, self._needs_proxy, [])
        n_rows = batch_pass.n_rows
        batch_pass.row_ids = list(range(n_rows)) if ids is None else ids
        if self._needs_backward:
            directions = self._directions
            vectors = {} if directions is None else directions.preconditioned(self.optimizers)
            self._direction_names = list(vectors)
            size = sum(p.numel() * p.element_size() for p in self.grad_hooks.parameters)
            fits = self._needs_gram or size * n_rows * self.accumulate <= MAX_KEPT_BYTES
            batch_pass.accumulator = self.grad_hooks.start_pass(
                n_rows, fits or self.accumulate == 1, [*vectors.values()], keep_recomputed=fits
            )
        if self._partial is not None and self._ddp is None:
            shape = token_shape(batch_pass.call)
            batch_pass.wanted = self._partial.wanted = shape and Candidates(shape)
        self._n_forward += 1
        self._pass = batch_pass
        if batch_pass.accumulator is None:
            torch.set_grad_enabled(False)  # until `_after_forward`
        return args, named

    def _after_forward(self, _model: nn.Module, _args: Any, _named: Any, output: Any) -> Any:
        batch_pass, self._pass = self._pass, None
        if batch_pass is None:
            return None
        if self._partial is not None:
            self._partial.wanted = None
        if batch_pass.accumulator is None:
            torch.set_grad_enabled(True)
            output = detach_outputs(output)
        else:
            batch_pass.accumulator.in_forward = False
        if output is None:  # the forward pass failed
            return None
        batch_pass.read_output(output)
        batch_pass.register_hooks(self._on_backward_start)
        return output

    def _disable_ddp_sync(self) -> None:
        """Disable DDP's reduction of the whole batch's gradient; `_write_grad` reduces instead."""
        ddp = DistributedDataParallel._get_active_ddp_module()
        if ddp is not None and ddp.module is self.model:
            ddp.require_backward_grad_sync = False
            self._ddp = ddp

    def _on_backward_start(self, batch_pass: BatchPass) -> None:
        if not self._passes_in_backward:
            engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.queue_callback(self._on_backward_end)
        self._passes_in_backward.append(batch_pass)
        # Checkpointing runs layers of this pass again, whatever pass ran last.
        self.grad_hooks.accumulator = batch_pass.accumulator
        if self._partial is not None:
            self._partial.wanted = batch_pass.wanted
            if batch_pass.trains_on_own_loss and self._n_forward == 1:
                scores = batch_pass.loss_scores()
                scores.margin_spent = (
                    None if self._directions is None else self._directions.margin_spent
                )
                batch_pass.leave_out_all_but(self.selector.candidates(scores))

    @torch.no_grad()
    def _on_backward_end(self) -> None:
        passes, self._passes_in_backward = self._passes_in_backward, []
        self.grad_hooks.accumulator = None
        self._n_forward = 0
        if self._partial is not None:
            self._partial.wanted = None
        for batch_pass in passes:
            batch_pass.finish()
        self._finished_passes += passes
        self._n_backward += 1
        if self._n_backward >= self.accumulate:
            self._select_and_write(unchecked=passes)
        else:
            for batch_pass in passes:
                self._check_rows(batch_pass)

    def _check_rows(self, batch_pass: BatchPass) -> None:
        """Refuse a model whose layers do not run on the rows of the batch."""
        accumulator, rows = batch_pass.accumulator, batch_pass.weights.nonzero()[:, 0].tolist()
        if accumulator is None or not rows:
            return
        if self._row_checker.is_due(accumulator, layer_dims(batch_pass.call)):
            self._disabled = True
            try:
                rows = sorted({rows[0], rows[-1]})
                self._row_checker.check(accumulator, rows, batch_pass.run_rows, True)
            finally:
                self._disabled = False

    # The selection

    def _select_and_write(self, unchecked: Sequence[BatchPass] = ()) -> None:
        passes, self._finished_passes = self._finished_passes, []
        self._n_backward, self._step_counted = 0, False
        self._unstepped = {id(optimizer) for optimizer in self.optimizers}
        samples, own_range = all_gather_samples(self._own_samples(passes), self._ddp)
        weights = samples.weights
        if (weights < 0).any() and (weights > 0).any():
            raise ConfigError(
                "the loop's loss lowers the losses of some rows and raises those of others, so a "
                "part of the rows cannot represent all: train without the selector"
            )
        selected = self.selector.choose_and_record(samples.scores, samples.ids)
        all_selected = len(selected) == len(samples.ids)
        factor = 1.0
        if self.selector.scale == "batch" and not all_selected:
            factor = weights.sum() / weights[selected].sum()
        rows = [i - own_range.start for i in sorted(set(selected.tolist()) & set(own_range))]
        total = self._selected_sums(passes, rows, float(factor))
        for batch_pass in passes:
            if batch_pass.accumulator is not None:
                batch_pass.accumulator.factors.clear()
        for batch_pass in unchecked:  # a check needs the memory of a step
            self._check_rows(batch_pass)
        self._write_grad(total, samples.param_indices)

    def _own_samples(self, passes: list[BatchPass]) -> RankSamples:
        names = self._direction_names
        behaviors = [b.name for b in self.selector.behaviors if b.name in names]
        scores = Scores.concatenate([one.scores(names, behaviors) for one in passes])
        scores.lr = float(self.optimizers[0].param_groups[0]["lr"])
        scores.margin_spent = None if self._directions is None else self._directions.margin_spent
        if self._needs_gram:
            self._add_pairwise_products(passes, scores)
        weights = torch.cat([batch_pass.weights.double().cpu() for batch_pass in passes])
        reached = {i for one in passes if one.accumulator for i in one.accumulator.reached}
        ids = [row_id for batch_pass in passes for row_id in batch_pass.row_ids]
        if self.selector.row_id is None:
            ids = list(range(len(weights)))
        return RankSamples(scores, weights.numpy(), ids, sorted(reached))

    def _add_pairwise_products(self, passes: list[BatchPass], scores: Scores) -> None:
        if self._ddp is not None:
            raise ConfigError(
                "taylor compares all samples with each other, which needs the gradients of all "
                "ranks: train on one device, or use another strategy"
            )
        parameters = self.grad_hooks.parameters
        ones = [torch.ones_like(parameter) for parameter in parameters]
        scales = apply_preconditioner(ones, parameters, self.optimizers)
        products = pairwise_products(passes, parameters, scales)
        scores.gram, scores.update_gram, scores.directional["batch"] = products

    def _selected_sums(
        self, passes: list[BatchPass], rows: list[int], factor: float
    ) -> list[Tensor | None]:
        """Sum the gradients of this rank's selected rows over all passes; average over ranks."""
        parameters = self.grad_hooks.parameters
        total: list[Tensor | None] = [None] * len(parameters)
        start = 0
        for batch_pass in passes:
            own = [row - start for row in rows if start <= row < start + batch_pass.n_rows]
            start += batch_pass.n_rows
            parts = self._selected_gradient(batch_pass, own, factor) if own else []
            for index, part in enumerate(parts):
                so_far = total[index]
                if part is not None:
                    total[index] = part if so_far is None else so_far.add_(part)
        if self._ddp is not None:
            pairs = zip(parameters, total, strict=True)
            reduced = [torch.zeros_like(p) if grad is None else grad for p, grad in pairs]
            all_reduce_mean(reduced, self._ddp)
            total = [*reduced]
        return total

    def _write_grad(self, total: list[Tensor | None], reached: list[int]) -> None:
        """Write a gradient to `.grad`.

        `reached` are the indices of the parameters that received gradients on any rank; it is
        empty if no backward pass ran over all rows.
        """
        for index, (parameter, grad) in enumerate(
            zip(self.grad_hooks.parameters, total, strict=True)
        ):
            if grad is None and index in reached:  # only by rows that were not selected
                grad = torch.zeros_like(parameter)
            # A guard may have frozen the parameter since.
            if grad is not None and parameter.requires_grad and (not reached or index in reached):
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)

    def _selected_gradient(
        self, batch_pass: BatchPass, rows: list[int], factor: float
    ) -> list[Tensor | None]:
        parameters = self.grad_hooks.parameters
        if batch_pass.accumulator is None or not batch_pass.accumulator.keep:
            self._disabled = self.grad_hooks.disabled = True
            try:
                return batch_pass.rerun_rows(rows, batch_pass.weights[rows] * factor, parameters)
            finally:
                self._disabled = self.grad_hooks.disabled = False
        gradients: list[Tensor | None] = []
        for index, parameter in enumerate(parameters):
            total = batch_pass.accumulator.take_sum(index, rows)
            gradients.append(None if total is None else total.mul_(factor).to(parameter.dtype))
        return gradients

    # The step

    def _before_step(self, optimizer: Optimizer, args: Any, named: dict[str, Any]) -> None:
        if len(args) > 1 or named.get("closure") is not None:
            return  # the closure runs the passes
        if self._n_backward:
            with torch.no_grad():
                self._select_and_write()
        self._require_gradient(optimizer)

    def _require_gradient(self, optimizer: Optimizer) -> None:
        if id(optimizer) not in self._unstepped:
            raise ConfigError(
                "the optimizer steps without a backward pass of the model in training mode since "
                "its last step: call model.train(), and attach the model that is trained"
            )

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._require_gradient(optimizer)  # that of the closure, if there is one
        self._unstepped.discard(id(optimizer))
        if self._step_counted:
            return
        self._step_counted = True
        self.selector.step += 1
        if self._directions is not None and self.selector.step % self.selector.probe_every == 0:
            self._directions.refresh()
