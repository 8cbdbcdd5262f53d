"""Taps on layers: what goes in and what comes back, sample by sample, in the one backward pass.

While a tapped layer runs, its own parameters do not require gradients, so autograd never computes
their sums over the batch; a hook on the output takes the gradient there instead. A parameter that
autograd reaches all the same was used outside of its layer, and that is an error, never a silent
omission.

What a layer keeps is saved by autograd, as it would save it itself: so gradient checkpointing
throws it away and computes it again, and the layer that is run again catches nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError
from riprap.linalg import Vector, widened
from riprap.selection._grad_factors import Outer, Piece, square
from riprap.selection._grad_samplers import EMBEDDING, LINEAR, Kind, covered, first_input


class _Keep(torch.autograd.Function):
    """A node that saves a tensor, and is never part of a backward pass."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return anchor.clone()


class _Root(torch.autograd.Function):
    """An output that no gradient was needed for, made into one that a hook can stand on."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, _anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


def _anchor(beside: Tensor) -> Tensor:
    return torch.zeros((), requires_grad=True, device=beside.device)


def rooted(tensor: Tensor) -> Tensor:
    """A tensor outside of every graph as the start of one, and still free to be changed."""
    own = tensor.clone() if tensor._is_view() and not tensor.is_leaf else tensor
    found: Tensor = _Root.apply(own, _anchor(tensor))
    return found


@dataclass
class Catch:
    """What one pass of `rows` samples gives, by the parameter's place.

    Attributes:
        rows: samples in the batch.
        dense: whether the gradients themselves are kept, or only what is asked of them.
        several: places of parameters that more than one layer holds.
        directions: vectors whose inner products with each sample's gradient are wanted.
        gradients: shape (rows, *parameter), where `dense`.
        squares: squared norms so far, shape (rows,).
        products: inner products so far, shape (directions, rows).
        spare: memory of earlier passes, by place; `reused` are the places that draw from it.
        counting: whether the forward pass is still under way; what checkpointing runs again in the
            backward pass is no further use of a weight.
    """

    rows: int
    dense: bool
    several: frozenset[int]
    directions: list[Vector] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    squares: Tensor | float = 0.0
    products: Tensor | float = 0.0
    held: dict[int, list[Piece]] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    counting: bool = True
    spare: dict[int, list[Tensor]] = field(default_factory=dict)
    reused: set[int] = field(default_factory=set)

    def take(self, place: int, piece: Piece) -> None:
        """One piece of one parameter's gradients."""
        if self.directions:
            found = [piece.along(direction[place]) for direction in self.directions]
            self.products = self.products + torch.stack(found).detach()
        if self.dense:
            known = self.gradients.get(place)
            if known is not None:
                known.add_(piece.dense())
            elif isinstance(piece, Outer):
                self.gradients[place] = piece.dense(self._spare(place))
                self.reused.add(place)
            else:
                self.gradients[place] = piece.dense()
        elif self.calls.get(place) == 1 and place not in self.several:
            self.squares = self.squares + piece.square()
        else:  # also where reentrant checkpointing hid from us how often the weight is used
            self.held.setdefault(place, []).append(piece)

    def _spare(self, place: int) -> Tensor | None:
        """Memory of an earlier pass: asking the system for as much each step costs some percent."""
        shelf = self.spare.get(place, [])
        return shelf.pop() if shelf and len(shelf[-1]) == self.rows else None

    def release(self) -> None:
        """Once the gradients are not needed: their memory is for the next pass."""
        for place in self.reused & set(self.gradients):
            shelf = self.spare.setdefault(place, [])
            values = self.gradients[place]
            shelf[:] = [one for one in shelf if len(one) == self.rows] + [values]
        self.gradients, self.reused = {}, set()

    def finish(self) -> None:
        """After the backward pass: what had to wait for cross terms."""
        for pieces in self.held.values():
            self.squares = self.squares + square(pieces)
        self.held.clear()
        for values in self.gradients.values():
            norms = torch.linalg.vector_norm(widened(values).flatten(1), dim=1)
            self.squares = self.squares + norms.square()


class Taps:
    """Hooks on every layer that holds a trainable parameter of `model`.

    Attributes:
        names: of the trainable parameters, in the order of every vector.
        parameters: those.
        current: the catch of the pass under way; None: layers run as they are.
        resting: whether gradients that autograd itself brings are looked for.

    Raises:
        ConfigError: a trainable parameter is not covered, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ConfigError("nothing to select for: the model has no trainable parameter")
        self.names = list(trained)
        self.parameters: list[Tensor] = list(trained.values())
        self._places = {id(parameter): at for at, parameter in enumerate(self.parameters)}
        self.current: Catch | None = None
        self.resting = False
        self._hidden: set[int] = set()
        self._entered: list[list[dict[str, int]]] = []  # by layer
        self._handles: list[Any] = []
        self._spare: dict[int, list[Tensor]] = {}
        layers = covered(model, trained)
        owners = [place for layer in layers for place in self._own(layer).values()]
        self.several = frozenset(place for place in owners if owners.count(place) > 1)
        self._layer_names = {module: name for name, module in model.named_modules()}
        for layer, kind in layers.items():
            self._tap(layer, kind)
        for name, parameter in trained.items():
            hook = partial(self._reached, name)
            self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def catch(self, rows: int, dense: bool, directions: list[Vector] | None = None) -> Catch:
        """Begin a pass over `rows` samples."""
        self.current = Catch(rows, dense, self.several, directions or [], spare=self._spare)
        return self.current

    def recover(self) -> None:
        """After a pass that was broken off where no hook could see it (an interrupt)."""
        self.current = None
        for place in self._hidden:
            self.parameters[place].requires_grad_(True)
        self._hidden.clear()
        for entered in self._entered:
            entered.clear()

    def remove(self) -> None:
        """Take every hook off."""
        self.recover()
        self._spare.clear()
        for handle in self._handles:
            handle.remove()

    def _own(self, layer: nn.Module) -> Mapping[str, int]:
        return {
            name: self._places[id(held)]
            for name, held in layer._parameters.items()
            if held is not None and id(held) in self._places
        }

    def _tap(self, layer: nn.Module, kind: Kind) -> None:
        own = self._own(layer)
        entered: list[dict[str, int]] = []  # what was hidden from autograd, call by call
        self._entered.append(entered)

        def show(hidden: Mapping[str, int], required: bool) -> None:
            for place in hidden.values():
                self.parameters[place].requires_grad_(required)
            (self._hidden.difference_update if required else self._hidden.update)(hidden.values())

        def enter(_: nn.Module, args: Any, named: Any) -> Any:
            catch = self.current
            if catch is None or not torch.is_grad_enabled():
                return None
            # A guard may have frozen some of them since.
            live = {n: place for n, place in own.items() if self.parameters[place].requires_grad}
            if not live:
                return None
            entered.append(live)
            show(live, False)
            x = first_input((args, named))
            if kind in (EMBEDDING, LINEAR) and len(x) == 1 < catch.rows:
                wide = x.expand(catch.rows, *x.shape[1:])  # shared by all rows, as positions are
                return ((wide, *args[1:]), named) if args else (args, {next(iter(named)): wide})
            return None

        def leave(module: nn.Module, args: Any, named: Any, output: Any) -> Any:
            catch = self.current
            if not entered:
                return None
            live = entered.pop()
            show(live, True)
            if output is None or catch is None:  # the layer failed
                return None
            return self._hooked(module, kind, live, catch, (args, named), output)

        self._handles += [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.register_forward_hook(leave, with_kwargs=True, always_call=True),
        ]

    def _hooked(
        self,
        layer: nn.Module,
        kind: Kind,
        own: Mapping[str, int],
        catch: Catch,
        inputs: Any,
        output: Tensor,
    ) -> Tensor:
        anchor = _anchor(output)
        with torch.no_grad():
            value = kind.keep(layer, inputs, output)
        if not output.requires_grad:
            output = rooted(output)
        node = _Keep.apply(anchor, value).grad_fn
        if catch.counting:
            for place in own.values():
                catch.calls[place] = catch.calls.get(place, 0) + 1
        output.register_hook(partial(self._caught, layer, kind, own, catch, [node]))
        return output

    def _caught(
        self,
        layer: nn.Module,
        kind: Kind,
        own: Mapping[str, int],
        catch: Catch,
        node: list[Any],
        grad: Tensor,
    ) -> None:
        name = self._layer_names[layer]
        if not node:
            raise ConfigError(f"a backward pass came to {name} twice: run each graph once")
        if len(grad) != catch.rows:
            raise ConfigError(
                f"{name} was given {len(grad)} rows of a batch of {catch.rows}, so whose they are "
                "is not known (a mixture of experts routes tokens): freeze its parameters"
            )
        with torch.no_grad():
            (kept,) = node.pop().saved_tensors
            pieces = kind.pieces(layer, kept, grad)
            for own_name, place in own.items():
                catch.take(place, pieces[own_name])

    def _reached(self, name: str, parameter: Tensor) -> None:
        if self.resting:
            return
        parameter.grad = None
        raise ConfigError(
            f"{name} was given a gradient outside of its own layer (used as a bare weight, in a "
            "penalty, or in a pass that is not the model's own in training mode), which cannot be "
            "told apart by sample: freeze it, or leave the selector off"
        )
