"""A selector at work around a training loop: passes are read, rows chosen, `.grad` is theirs.

A pass is one forward of the model in training mode, and its backward. At the end of the last
backward pass of a step, inside `backward()`, the rows are chosen over the optimizer's whole batch
and the gradient of the loop's own loss over those rows is put into `.grad`, before anything else
looks there (gradient clipping, a monitor, a guard).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from riprap._distributed import unwrap_model
from riprap.errors import ConfigError
from riprap.selection._batch_pass import Pass, leaves
from riprap.selection._batches import Call, names_of, refuse_wrapped
from riprap.selection._ddp import Share, over_ranks, sum_over_ranks
from riprap.selection._grad_hooks import Taps
from riprap.selection._pairwise import grams
from riprap.selection._protected_directions import Compass, rate_of, through_update
from riprap.selection._row_losses import Losses
from riprap.selection._scores import Scores

if TYPE_CHECKING:
    from riprap.selection._selector import Selector

ROOM = 2**31  # bytes of per-sample gradients; where they would be more, rows are run again

_BACKWARD = {"norm", "gram", "harm", "danger", "safety", "validation"}


def innermost(optimizer: Any) -> Optimizer:
    """The torch optimizer inside wrappers such as Accelerate's.

    Raises:
        ConfigError: there is none, or it is one of DeepSpeed's, which steps inside its own engine.
    """
    inner = optimizer
    while inner is not None:
        if any(kind.__module__.startswith("deepspeed.runtime") for kind in type(inner).__mro__):
            raise ConfigError(
                "cannot select under DeepSpeed, whose engine steps a copy of the parameters within "
                "backward(): train with DDP"
            )
        inner = getattr(inner, "optimizer", None)
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"cannot select for a {type(optimizer).__name__}: give the torch.optim.Optimizer "
            "whose step() trains the model"
        )
    return optimizer


class Attachment:
    """Hooks on a model and its optimizer; see `Selector.attach`.

    Attributes:
        accumulate: backward passes before a step of the optimizer.
    """

    def __init__(
        self, selector: Selector, model: nn.Module, optimizer: Any, accumulate: int, losses: Any
    ) -> None:
        self.selector, self.accumulate = selector, accumulate
        self.model, self.optimizer = unwrap_model(model), innermost(optimizer)
        refuse_wrapped(self.model)
        self._losses: Losses | None = losses
        needs = selector.strategy.reads | set(selector.directions)
        self._backward, self._gram = bool(needs & _BACKWARD), "gram" in needs
        self._proxied = "proxy" in needs
        self.taps = Taps(self.model)
        self._compass = self._aimed(needs)
        self._pass: Pass | None = None
        self._begun: list[Pass] = []
        self._done: list[Pass] = []
        self._backwards, self._settled, self._resting = 0, False, False
        self._ddp: DistributedDataParallel | None = None
        self._names: list[str] = []
        self._handles = [
            self.model.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
            self.model.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]

    def _aimed(self, needs: frozenset[str] | set[str]) -> Compass | None:
        selector = self.selector
        if not selector.behaviors and not selector.directions:
            return None
        held = "harm" in needs
        try:
            return Compass(
                selector.behaviors, selector.directions, self.model, self.taps.parameters, held
            )
        except Exception:
            self.taps.remove()
            raise

    def remove(self) -> None:
        """Take everything off; the model and the optimizer are as they were."""
        self._recover()
        self.taps.remove()
        for handle in self._handles:
            handle.remove()
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = True
        self._begun, self._done = [], []

    def _recover(self) -> None:
        """An interrupt passes by `_leave`: what it was to set right."""
        if self._pass is not None and self._pass.catch is None:
            torch.set_grad_enabled(True)
        self._pass = None
        self.taps.recover()

    # The pass

    def _enter(self, model: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        self._recover()
        if self._resting or not model.training or not torch.is_grad_enabled():
            return None
        self._begun = []
        self._spread()
        named = dict(named)
        ids = names_of(named, self.selector.row_id)
        call: Call = (args, named)
        one = Pass(self.model, call, self._losses, self._proxied, [])
        one.ids = list(range(one.rows)) if ids is None else ids
        if self._backward:
            pulls = {} if self._compass is None else self._compass.pulls(self.optimizer)
            self._names = list(pulls)
            one.catch = self.taps.catch(one.rows, self._fits(one.rows), list(pulls.values()))
        self._pass = one
        if one.catch is None:
            torch.set_grad_enabled(False)  # until `_leave`
        return args, named

    def _fits(self, rows: int) -> bool:
        size = sum(p.numel() * p.element_size() for p in self.taps.parameters)
        return self._gram or size * rows * self.accumulate <= ROOM

    def _leave(self, _model: nn.Module, _args: Any, _named: Any, output: Any) -> Any:
        one, self._pass = self._pass, None
        if one is None:
            return None
        if one.catch is None:
            torch.set_grad_enabled(True)
            output = leaves(output)
        else:
            one.catch.counting = False
        if output is None:  # the forward pass failed
            return None
        one.read(output)
        one.stand(self._came)
        return output

    def _spread(self) -> None:
        """Under DDP the selected gradient is reduced here, so DDP must not reduce what it sees."""
        ddp = DistributedDataParallel._get_active_ddp_module()
        if ddp is not None and ddp.module is self.model:
            ddp.require_backward_grad_sync = False
            self._ddp = ddp

    def _came(self, one: Pass) -> None:
        if not self._begun:
            engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            engine.queue_callback(self._backward_ended)
        self._begun.append(one)

    @torch.no_grad()
    def _backward_ended(self) -> None:
        begun, self._begun = self._begun, []
        self.taps.current = None
        for one in begun:
            one.finish()
        self._done += begun
        self._backwards += 1
        if self._backwards >= self.accumulate:
            self._settle()

    # The choice

    def _settle(self) -> None:
        done, self._done = self._done, []
        self._backwards, self._settled = 0, True
        behaviors = [b.name for b in self.selector.behaviors if b.name in self._names]
        scores = Scores.joined([one.scores(self._names, behaviors) for one in done])
        scores.rate = rate_of(self.optimizer)
        scores.drift = None if self._compass is None else self._compass.drift
        if self._gram:
            self._compare(done, scores)
        weights = torch.cat([one.weights.double().cpu() for one in done])
        reached = sorted({at for one in done if one.catch for at in one.catch.gradients})
        ids = [name for one in done for name in one.ids]
        if self.selector.row_id is None:
            ids = list(range(len(weights)))
        share = Share(scores, weights.numpy(), ids, reached)
        everyone, mine, places = over_ranks(share, self._ddp)
        if (everyone.weights < 0).any() and (everyone.weights > 0).any():
            raise ConfigError(
                "the loop's loss lowers the losses of some rows and raises those of others, so no "
                "share of the rows can stand for all: leave the selector off"
            )
        chosen = self.selector.decide(everyone.scores, everyone.ids)
        whole = len(chosen) == len(everyone.ids)
        factor = 1.0 if whole else everyone.weights.sum() / everyone.weights[chosen].sum()
        own = sorted(set(chosen.tolist()) & set(mine))
        rows = [at - mine.start for at in own]
        self._write(done, rows, float(factor), places)
        for one in done:
            if one.catch is not None:
                one.catch.release()

    def _compare(self, done: list[Pass], scores: Scores) -> None:
        if self._ddp is not None:
            raise ConfigError("taylor compares samples with each other, which no rank can alone")
        parameters = self.taps.parameters
        ones = [torch.ones_like(parameter) for parameter in parameters]
        found = grams(done, parameters, through_update(ones, parameters, self.optimizer))
        scores.gram, scores.moves = found.gradients, found.updates
        scores.along["batch"] = found.batch

    def _write(self, done: list[Pass], rows: list[int], factor: float, places: list[int]) -> None:
        parameters = self.taps.parameters
        total: list[Tensor | None] = [None] * len(parameters)
        start = 0
        for one in done:
            own = [row - start for row in rows if start <= row < start + one.rows]
            start += one.rows
            for place, part in enumerate(self._part(one, own, factor) if own else ()):
                held = total[place]
                if part is not None:
                    total[place] = part if held is None else held.add_(part)
        if self._ddp is not None:
            every = [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(parameters, total, strict=True)
            ]
            sum_over_ranks(every, self._ddp)
            total = [*every]
        for place, (parameter, grad) in enumerate(zip(parameters, total, strict=True)):
            if grad is None and place in places:  # by rows that were not taken
                grad = torch.zeros_like(parameter)
            # A guard may have frozen it since.
            if grad is not None and parameter.requires_grad and (not places or place in places):
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)

    def _part(self, one: Pass, rows: list[int], factor: float) -> list[Tensor | None]:
        if one.catch is None or not one.catch.dense:
            self._resting = self.taps.resting = True
            try:
                return one.again(rows, one.weights[rows] * factor, self.taps.parameters)
            finally:
                self._resting = self.taps.resting = False
        found: list[Tensor | None] = []
        for place, parameter in enumerate(self.taps.parameters):
            every = one.catch.gradients.get(place)
            if every is None:
                found.append(None)
                continue
            summed = every.sum(0) if len(rows) == one.rows else every[rows].sum(0)
            found.append(summed.mul_(factor).to(parameter.dtype))
        return found

    # The step

    def _before_step(self, _optimizer: Optimizer, args: Any, named: dict[str, Any]) -> None:
        if len(args) > 1 or named.get("closure") is not None:
            return  # the closure makes the passes
        if self._backwards:
            with torch.no_grad():
                self._settle()
        if not self._settled:
            raise ConfigError(
                "the optimizer steps, and no backward pass of the model in training mode was "
                "seen since its last step: call model.train(), and attach the model that is run"
            )

    def _after_step(self, *_: Any) -> None:
        self._settled = False
        self.selector.step += 1
        if self._compass is not None and self.selector.step % self.selector.refresh == 0:
            self._compass.refresh()
