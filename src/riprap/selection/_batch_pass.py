"""One pass of training over a batch: each row's loss, weight in the loop's loss, and gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from riprap.errors import ConfigError
from riprap.linalg import widened
from riprap.selection._batches import Call, count, take
from riprap.selection._grad_hooks import Catch, rooted
from riprap.selection._proxy_score import error_norms
from riprap.selection._row_losses import (
    IGNORED,
    Losses,
    RowLosses,
    kept_losses,
    named_arguments,
    part,
    row_losses,
    targets_of,
    without_labels,
)
from riprap.selection._scores import Scores

NOT_THE_MEAN = (
    "the loss that is trained on is not a weighted mean of the rows' own losses (label smoothing, "
    "an auxiliary loss, or a loss of another kind): give losses=, a function "
    "(output, inputs) -> each row's loss"
)


def leaves(output: Any) -> Any:
    """The same output, its floating-point tensors at the start of a graph, to be changed freely."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            with torch.enable_grad():
                return rooted(value.detach())
        return value

    return tree_map(leaf, output)


@dataclass
class Autocast:
    """The state of autocast at a forward pass, so that a later one is made alike."""

    kind: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, model: nn.Module) -> Autocast:
        """As it stands for the model's device."""
        kind = next(model.parameters()).device.type
        return cls(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    def again(self) -> torch.autocast:
        """A context in which it is so again."""
        # What the first pass cached was cast from weights that did not ask for gradients.
        return torch.autocast(self.kind, self.dtype, self.enabled, cache_enabled=False)


@dataclass
class Pass:
    """A batch on its way.

    Attributes:
        call: the arguments of the forward pass.
        ids: what each row is called.
        catch: what the taps catch; None where no backward pass is made over the whole batch.
        weights: w_i, so that the row's part of the loop's gradient is w_i ∇L_i, shape (rows,).
    """

    model: nn.Module
    call: Call
    losses: Losses | None
    proxied: bool
    ids: list[Any]
    catch: Catch | None = None
    autocast: Autocast = field(init=False)
    weights: Tensor = field(init=False)
    _rows: RowLosses = field(init=False)
    _proxy: Tensor | None = None
    _output: Any = None
    _fused: bool = False
    _loss: Tensor | None = None
    _scale: Tensor | None = None
    _exits: list[Tensor] = field(default_factory=list)
    _back: dict[int, Tensor] = field(default_factory=dict)
    _aside: bool = False
    _sent: Tensor | None = None

    def __post_init__(self) -> None:
        self.rows = count(self.call)
        self.autocast = Autocast.now(self.model)
        self._named = named_arguments(self.model, self.call)

    @torch.no_grad()
    def read(self, output: Any) -> None:
        """Each row's loss, from what the model put out."""
        self._output = output
        loss = part(output, "loss")  # trainers scale it in place
        self._loss = loss.detach().clone() if isinstance(loss, Tensor) else None
        self._fused = part(output, "log_probs") is not None
        if self.proxied and self.losses is None:
            self._rows, self._proxy = error_norms(self.model, output, self._named)
        else:
            known = kept_losses(part(output, "loss"), self._named) if self.losses is None else None
            self._rows = known or row_losses(output, self._named, self.losses)
            if self.proxied:
                self._proxy = error_norms(self.model, output, self._named)[1]
        if self._rows.values.shape != (self.rows,):
            raise ConfigError(
                f"losses came in the shape {tuple(self._rows.values.shape)}; one for each of the "
                f"{self.rows} rows is needed"
            )

    def stand(self, begun: Callable[[Pass], None]) -> None:
        """Hooks on what the loop may go on with; `begun` is called as its backward pass begins."""
        loss = part(self._output, "loss")
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.register_hook(lambda grad: self._loss_came(grad, begun))
        logits = part(self._output, "logits")
        for at, value in enumerate(_exits(self._output, self.rows)):
            own = value is logits
            value.register_hook(lambda grad, at=at, own=own: self._exit_came(at, grad, begun, own))
        self._exits = [value.detach() for value in _exits(self._output, self.rows)]

    def _loss_came(self, grad: Tensor, begun: Callable[[Pass], None]) -> None:
        if self._scale is None:
            begun(self)
        self._scale = grad.detach() if self._scale is None else self._scale + grad.detach()

    def _exit_came(
        self, at: int, grad: Tensor, begun: Callable[[Pass], None], logits: bool
    ) -> None:
        if self._scale is not None:  # what the model's own loss sends to its own logits
            self._aside = True
            if logits and self._rows.sure is not None:
                found = self._at_targets(grad)
                self._sent = found if self._sent is None else self._sent + found
            return
        if not self._back:
            begun(self)
        self._back[at] = grad.detach()

    def _at_targets(self, grad: Tensor) -> Tensor:
        """Σ_t of the gradient in the logit of the token that is to come, shape (rows,)."""
        targets = targets_of(self._named["labels"], self._named.get("shift_labels"))
        targets = targets.to(grad.device)
        own = widened(grad.detach().gather(2, targets.clamp(min=0)[..., None])[..., 0])
        return (own * (targets != IGNORED)).sum(1)

    def finish(self) -> None:
        """After the backward pass: the weights that the loop's loss gave to the rows."""
        self.weights = self._given() if self._scale is not None else self._found()
        if self.catch is not None:
            self.catch.finish()
        self._output, self._exits, self._back = None, [], {}

    def _given(self) -> Tensor:
        """From the model's own loss, Σ n_i L_i / N."""
        assert self._scale is not None and self._loss is not None
        tokens, values = self._rows.tokens, self._rows.values
        items = self._named.get("num_items_in_batch")
        total = tokens.sum().clamp(min=1) if items is None else torch.as_tensor(items).sum()
        shares = tokens.to(values) / total.to(values)
        loss = self._loss.to(values)
        tolerance = 1e-2 if self._output_is_half() else 1e-4
        alike = torch.isclose((shares * values).sum(), loss, rtol=tolerance, atol=tolerance)
        if loss.isfinite() and not (alike and self._alone(total)):
            raise ConfigError(NOT_THE_MEAN)
        return shares * self._scale.to(values)

    def _alone(self, total: Tensor) -> bool:
        """Whether no other loss was sent back beside the model's own."""
        if self.catch is None:  # the outputs were cut apart, so that the own loss reaches no other
            return not (self._aside or self._back)
        assert self._scale is not None
        if self._sent is None or self._rows.sure is None or not self._sent.isfinite().all():
            return True
        each = self._scale.double() / total.double()
        wanted = each * (self._rows.sure.double() - self._rows.tokens)
        far = (self._sent.double() - wanted).abs()
        room = (2e-2 if self._output_is_half() else 1e-4) * each.abs() * self._rows.tokens
        return bool((far <= room).all())

    def _output_is_half(self) -> bool:
        return self.autocast.enabled or any(exit.dtype.itemsize < 4 for exit in self._exits)

    def _found(self) -> Tensor:
        """From what the loop's own loss sent back: w_i is its gradient over that of L_i."""
        output = leaves(self._output)
        exits = _exits(output, self.rows)
        with torch.enable_grad():
            values = row_losses(output, self._named, self.losses).values
            own = torch.autograd.grad(values.sum(), exits, allow_unused=True)
        dots: Tensor | float = 0.0
        squares: Tensor | float = 0.0
        sent: Tensor | float = 0.0
        for at, error in enumerate(own):
            back = self._back.get(at)
            one = None if error is None else widened(error).flatten(1)
            other = None if back is None else widened(back).flatten(1)
            if one is not None:
                squares = squares + one.square().sum(1)
            if other is not None:
                sent = sent + other.square().sum(1)
            if one is not None and other is not None:
                dots = dots + (one * other).sum(1)
        dots, squares, sent = (torch.as_tensor(value) for value in (dots, squares, sent))
        weights = torch.where(squares > 0, dots / squares, 0.0)
        left = (sent - dots * weights).clamp(min=0)
        tolerance = 1e-2 if self._output_is_half() else 1e-4
        if bool((left > tolerance * sent).any()):
            raise ConfigError(NOT_THE_MEAN)
        return weights

    def scores(self, names: list[str], behaviors: list[str]) -> Scores:
        """Small arrays of this pass; `names` are those of the directions, `behaviors` some of them.

        What the taps caught is w_i ∇L_i; the scores are of ∇L_i.
        """
        weights = self.weights.double()
        caught = self.catch
        safe = torch.where(weights == 0, 1.0, weights)
        # A row that the loop's loss leaves out is not there to be taken.
        tokens = self._rows.tokens * (weights != 0).to(self._rows.tokens)
        scores = Scores(_array(self._rows.values), _array(tokens))
        scores.proxy = None if self._proxy is None else _array(self._proxy)
        if caught is not None:
            squares = torch.as_tensor(caught.squares).double().clamp(min=0)
            scores.norm = _array(squares.sqrt() / safe.abs())
            if names:
                products = torch.as_tensor(caught.products).double() / safe
                along = {name: _array(row) for name, row in zip(names, products, strict=True)}
                scores.harm = {name: -along[name] for name in behaviors}
                scores.along = {n: row for n, row in along.items() if n not in behaviors}
        return scores

    def again(
        self, rows: list[int], weights: Tensor, parameters: list[Tensor]
    ) -> list[Tensor | None]:
        """Σ weights_i ∇L_i over some of the rows, by a plain pass over them alone.

        None for a parameter that is not reached. By `backward()`, as reentrant checkpointing hides
        parameters from `autograd.grad`.
        """
        call = take(self.call, rows, self.rows)
        own = self.losses is not None or self._fused  # what reads the labels is not known, or reads
        args, named = call if own else without_labels(call)
        with torch.enable_grad():
            with self.autocast.again():
                output = self.model(*args, **named)
                given = named_arguments(self.model, call)
                values = row_losses(output, given, self.losses).values
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


def _array(values: Tensor) -> Any:
    return values.detach().double().cpu().numpy()


def _exits(output: Any, rows: int) -> list[Tensor]:
    """Tensors with a row for each sample that a loss may be made of."""
    return [
        value
        for value in tree_flatten(output)[0]
        if isinstance(value, Tensor)
        and value.requires_grad
        and value.dim() > 0
        and len(value) == rows
    ]
