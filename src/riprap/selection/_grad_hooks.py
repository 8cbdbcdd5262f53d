"""Hooks on layers that compute per-sample gradients in one backward pass.

While a hooked layer runs, its own parameters have `requires_grad=False`, so autograd never computes
their sums over the batch. A hook on the layer's output receives the output gradient instead. If
autograd still brings a gradient to such a parameter, the parameter was used outside of its layer;
this raises an error.

The input of a layer is saved by autograd, as autograd would save it itself. Gradient checkpointing
therefore discards and recomputes it, and the recomputed layer adds no gradient twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from riprap.errors import ConfigError
from riprap.linalg import Vector
from riprap.selection._grad_factors import GradFactor, add_factor, smaller_form, squared_norm
from riprap.selection._grad_samplers import GradSampler, first_input, supported_layers
from riprap.selection._optimizers import LiveHook, refuse_steps_in_backward

# A layer's name, the dimensions of its output, and if an inner one has as many rows as the batch.
LayerCall = tuple[str, int, bool]

# PEFT's methods whose prompt encoder runs on one row, whatever the batch.
SHARED_PROMPTS = {"PROMPT_TUNING", "P_TUNING", "CPT"}


class _SaveForBackward(torch.autograd.Function):
    """Node that saves a tensor and takes no part in a backward pass."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, saved: Tensor) -> Tensor:
        ctx.save_for_backward(saved)
        return leaf.clone()


class _GraphRoot(torch.autograd.Function):
    """Make an output without a graph the start of one, so that it can have a hook."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, _leaf: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


def _dummy_leaf(like: Tensor) -> Tensor:
    return torch.zeros((), requires_grad=True, device=like.device)


def make_graph_root(tensor: Tensor) -> Tensor:
    """Make a tensor without a graph the start of one; it can still be changed in place."""
    owned = tensor.clone() if tensor._is_view() and not tensor.is_leaf else tensor
    root: Tensor = _GraphRoot.apply(owned, _dummy_leaf(tensor))
    return root


@dataclass
class GradSampleAccumulator:
    """Per-sample gradients of one forward and backward pass, by index of the parameter.

    Attributes:
        rows: number of samples in the batch.
        keep: keep the gradients for `take_sum`, each layer's in its smaller form; otherwise only
            their norms and dot products.
        keep_recomputed: keep them also if the layers' inputs do not live until the backward pass
            anyway (gradient checkpointing, offloading), so that keeping them needs more memory.
        shared_params: indices of parameters that several layers hold.
        directions: vectors whose dot product with each per-sample gradient is computed.
        factors: gradients by parameter: all if `keep`; until `finish`, those with cross terms.
        reached: indices of the parameters that received a gradient.
        squared_norms: squared norms so far, shape (rows,).
        dot_products: dot products so far, shape (directions, rows).
        in_forward: the forward pass is running. A layer that checkpointing runs again in the
            backward pass is not another use of its weight.
        layer_calls: what is known of the shapes on which layers ran; see `RowChecker`.
    """

    rows: int
    keep: bool
    shared_params: frozenset[int]
    directions: list[Vector] = field(default_factory=list)
    keep_recomputed: bool = True
    factors: dict[int, list[GradFactor]] = field(default_factory=dict)
    reached: set[int] = field(default_factory=set)
    squared_norms: Tensor | float = 0.0
    dot_products: Tensor | float = 0.0
    n_uses: dict[int, int] = field(default_factory=dict)  # in the forward pass
    in_forward: bool = True
    layer_calls: set[LayerCall] = field(default_factory=set)
    _normed: set[int] = field(default_factory=set)  # parameters whose norms are known

    def add(self, param_index: int, factor: GradFactor) -> None:
        """Add one factor of a parameter's per-sample gradients."""
        self.reached.add(param_index)
        if self.directions:
            dots = [factor.dot(direction[param_index]) for direction in self.directions]
            self.dot_products = self.dot_products + torch.stack(dots).detach()
        if self.keep:
            factor = smaller_form(factor)
        # Reentrant checkpointing hides how often the weight is used: `finish` adds its norms.
        if self.n_uses.get(param_index) == 1 and param_index not in self.shared_params:
            self.squared_norms = self.squared_norms + factor.squared_norm()
            self._normed.add(param_index)
            if not self.keep:
                return
        add_factor(self.factors.setdefault(param_index, []), factor)

    def note_recomputed(self) -> None:
        """Keep norms only, if the layers' inputs are held for the gradients alone."""
        if self.keep and not self.keep_recomputed:
            self.keep = False
            self._drop_normed()

    def _drop_normed(self) -> None:
        self.factors = {i: own for i, own in self.factors.items() if i not in self._normed}

    def finish(self) -> None:
        """Add the norms that need all factors of a parameter, after the backward pass."""
        for index, factors in self.factors.items():
            if index not in self._normed:
                self.squared_norms = self.squared_norms + squared_norm(factors)
        if not self.keep:
            self.factors.clear()

    def grad_samples(self, param_index: int) -> Tensor | None:
        """Return the per-sample gradients, shape (rows, *parameter); None if there are none."""
        parts = [factor.materialize() for factor in self.factors.get(param_index, [])]
        return sum(parts[1:], parts[0]) if parts else None

    def take_sum(self, param_index: int, rows: list[int]) -> Tensor | None:
        """Return the sum of some rows' gradients and free the parameter's; None: there are none."""
        parts = [factor.sum(rows) for factor in self.factors.pop(param_index, [])]
        return sum(parts[1:], parts[0]) if parts else None


class PerSampleGradHooks:
    """Hooks on every layer that holds a trainable parameter of `model`.

    Attributes:
        names: names of the trainable parameters, in the order of every vector.
        parameters: the trainable parameters.
        accumulator: accumulator of the running pass; None: layers run unchanged.
        layers: the hooked layers; `layer_names`: the name of every module.
        disabled: ignore gradients that autograd brings to the parameters.

    Raises:
        ConfigError: a trainable parameter, which is named, lies in an unsupported layer.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ConfigError("the model has no trainable parameter, so rows cannot be selected")
        refuse_steps_in_backward(trained)
        _refuse_shared_prompts(model, trained)
        self.names = list(trained)
        self.parameters: list[Tensor] = list(trained.values())
        self._param_index = {id(p): index for index, p in enumerate(self.parameters)}
        self.accumulator: GradSampleAccumulator | None = None
        self.disabled = False
        self._hidden: set[int] = set()
        self._hidden_by_call: list[list[dict[str, int]]] = []  # one list a layer
        self._handles: list[Any] = []
        layers = supported_layers(model, trained)
        owners = [index for layer in layers for index in self._trained_params(layer).values()]
        self.shared_params = frozenset(index for index in owners if owners.count(index) > 1)
        self.layer_names = {module: name for name, module in model.named_modules()}
        self.layers = list(layers)
        for layer, sampler in layers.items():
            self._add_hooks(layer, sampler)
        for name, parameter in trained.items():
            hook = LiveHook(partial(self._on_unhooked_grad, name))
            self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def start_pass(
        self,
        rows: int,
        keep: bool,
        directions: list[Vector] | None = None,
        keep_recomputed: bool = True,
    ) -> GradSampleAccumulator:
        """Begin a pass over `rows` samples; see `GradSampleAccumulator`."""
        self.accumulator = GradSampleAccumulator(
            rows, keep, self.shared_params, directions or [], keep_recomputed
        )
        return self.accumulator

    def recover(self) -> None:
        """Restore `requires_grad` after a pass that an interrupt ended where no hook runs."""
        self.accumulator = None
        for index in self._hidden:
            self.parameters[index].requires_grad_(True)
        self._hidden.clear()
        for hidden in self._hidden_by_call:
            hidden.clear()

    def remove(self) -> None:
        """Remove every hook."""
        self.recover()
        for handle in self._handles:
            handle.remove()

    def _trained_params(self, layer: nn.Module) -> Mapping[str, int]:
        return {
            name: self._param_index[id(parameter)]
            for name, parameter in layer._parameters.items()
            if parameter is not None and id(parameter) in self._param_index
        }

    def _add_hooks(self, layer: nn.Module, sampler: GradSampler) -> None:
        params, name = self._trained_params(layer), self.layer_names[layer]
        hidden_by_call: list[dict[str, int]] = []  # parameters hidden from autograd
        self._hidden_by_call.append(hidden_by_call)

        def set_requires_grad(hidden: Mapping[str, int], required: bool) -> None:
            for index in hidden.values():
                self.parameters[index].requires_grad_(required)
            (self._hidden.difference_update if required else self._hidden.update)(hidden.values())

        def before_forward(_: nn.Module, args: Any, named: Any) -> Any:
            accumulator = self.accumulator
            if accumulator is None or not torch.is_grad_enabled():
                return None
            # A guard may have frozen some of the parameters since.
            live = {n: index for n, index in params.items() if self.parameters[index].requires_grad}
            if not live:
                return None
            hidden_by_call.append(live)
            set_requires_grad(live, False)
            x = first_input((args, named))
            expanded = _for_each_row(layer, x, accumulator.rows)
            if expanded is not None:
                if args:
                    return (expanded, *args[1:]), named
                return args, {next(iter(named)): expanded}
            return None

        def after_forward(module: nn.Module, args: Any, named: Any, output: Any) -> Any:
            accumulator = self.accumulator
            if not hidden_by_call:
                return None
            live = hidden_by_call.pop()
            set_requires_grad(live, True)
            if output is None or accumulator is None:  # the layer failed
                return None
            has_inner_rows = accumulator.rows in output.shape[1:-1]
            accumulator.layer_calls.add((name, output.dim(), has_inner_rows))
            leaf = _dummy_leaf(output)
            with torch.no_grad():
                saved = sampler.save(module, (args, named), output)
            if not output.requires_grad:
                output = make_graph_root(output)
            node = _SaveForBackward.apply(leaf, saved).grad_fn
            if accumulator.in_forward:
                for index in live.values():
                    accumulator.n_uses[index] = accumulator.n_uses.get(index, 0) + 1
            else:
                accumulator.note_recomputed()
            output.register_hook(partial(on_backward, live, accumulator, [node]))
            return output

        def on_backward(
            live: Mapping[str, int],
            accumulator: GradSampleAccumulator,
            node: list[Any],
            grad: Tensor,
        ) -> None:
            with torch.no_grad():
                saved = self._saved_input(layer, accumulator.rows, node, grad)
                factors = sampler.factors(layer, saved, grad)
                for own, index in live.items():
                    accumulator.add(index, factors[own])

        self._handles += [
            layer.register_forward_pre_hook(LiveHook(before_forward), with_kwargs=True),
            layer.register_forward_hook(
                LiveHook(after_forward), with_kwargs=True, always_call=True
            ),
        ]

    def _saved_input(self, layer: nn.Module, rows: int, node: list[Any], grad: Tensor) -> Tensor:
        name = self.layer_names[layer]
        if not node:
            raise ConfigError(
                f"backward ran twice through {name}: run backward once on each graph, without "
                "retain_graph"
            )
        if grad.dim() < 2 or len(grad) != rows:
            n_rows = len(grad) if grad.dim() > 1 else 1
            raise ConfigError(
                f"{name} was given {n_rows} rows of a batch of {rows}, so its rows cannot be "
                "assigned to samples (a mixture of experts routes tokens): freeze its parameters"
            )
        saved: Tensor = node.pop().saved_tensors[0]
        return saved

    def _on_unhooked_grad(self, name: str, parameter: Tensor) -> None:
        if self.disabled:
            return
        parameter.grad = None
        raise ConfigError(
            f"{name} received a gradient from outside of its own layer (used as a bare weight, in "
            "a penalty, or in a pass that is not the model's own in training mode), which cannot "
            "be split by sample: freeze it, or train without the selector"
        )


def _for_each_row(layer: nn.Module, x: Tensor, rows: int) -> Tensor | None:
    """Return an input that all rows share, such as positions, once for each row; None: it is none.

    Positions are one row of them, or consecutive numbers without a dimension for the rows; as many
    numbers as rows may be the rows' own.
    """
    if isinstance(layer, nn.Embedding) and x.dim() == 1 and len(x) not in (1, rows):
        consecutive = torch.arange(len(x), device=x.device, dtype=x.dtype) + x[0]
        return x.expand(rows, len(x)) if torch.equal(x, consecutive) else None
    if isinstance(layer, nn.Embedding | nn.Linear) and len(x) == 1 < rows:
        return x.expand(rows, *x.shape[1:])
    return None


def _refuse_shared_prompts(model: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Refuse PEFT's virtual tokens that are computed once and copied to every row of a batch."""
    if not any("prompt_encoder." in name for name in trained):
        return
    for module in model.modules():
        kind = getattr(getattr(module, "active_peft_config", None), "peft_type", None)
        if kind in SHARED_PROMPTS:
            raise ConfigError(
                f"rows cannot be selected under PEFT's {kind.value}: its virtual tokens are "
                "computed once for all rows of a batch, so no row has a gradient of its own: "
                "train an adapter such as LoRA, or train without the selector"
            )
