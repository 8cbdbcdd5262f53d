"""Kinds of layers whose gradients can be taken sample by sample, and how each takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from riprap.errors import ConfigError
from riprap.selection._grad_factors import Dense, Lookup, Outer, Piece

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """What a layer must keep of its input, and its gradients from that.

    Attributes:
        keep: (module, its arguments, its output) -> the tensor that is kept.
        pieces: (module, what was kept, gradient in the output) -> pieces by parameter's own name.
    """

    keep: Callable[[nn.Module, Inputs, Tensor], Tensor]
    pieces: Callable[[Any, Tensor, Tensor], dict[str, Piece]]


def first_input(inputs: Inputs) -> Tensor:
    """A layer's first argument."""
    args, named = inputs
    found: Tensor = args[0] if args else next(iter(named.values()))
    return found


def _input(_module: nn.Module, inputs: Inputs, _output: Tensor) -> Tensor:
    return first_input(inputs).detach()


def _rows(tensor: Tensor, ends: int = 1) -> Tensor:
    """Shape (batch, T, …) with the last `ends` dimensions as they are."""
    tail = tensor.shape[tensor.dim() - ends :]
    return tensor.reshape(tensor.shape[0], -1, *tail)


def _linear(module: Any, kept: Tensor, grad: Tensor, transposed: bool = False) -> dict[str, Piece]:
    left = _rows(grad)
    found: dict[str, Piece] = {"weight": Outer(left, _rows(kept).to(left.dtype), transposed)}
    if module.bias is not None:
        found["bias"] = Dense(left.sum(1))
    return found


def _conv1d(module: Any, kept: Tensor, grad: Tensor) -> dict[str, Piece]:
    return _linear(module, kept, grad, transposed=True)


def _embedding(module: nn.Embedding, kept: Tensor, grad: Tensor) -> dict[str, Piece]:
    left, ids = _rows(grad), kept.flatten(1)
    if module.padding_idx is not None:
        left = left * (ids != module.padding_idx)[..., None]
    return {"weight": Lookup(left, ids, module.num_embeddings)}


def _scaled(normalized: Tensor, grad: Tensor, ends: int) -> dict[str, Piece]:
    return {
        "weight": Dense(_rows(grad * normalized, ends).sum(1)),
        "bias": Dense(_rows(grad, ends).sum(1)),
    }


def _layer_norm(module: nn.LayerNorm, kept: Tensor, grad: Tensor) -> dict[str, Piece]:
    shape = list(module.normalized_shape)
    normalized = functional.layer_norm(kept.to(grad.dtype), shape, eps=module.eps)
    return _scaled(normalized, grad, len(shape))


def _affine_norm(module: Any, kept: Tensor, grad: Tensor) -> dict[str, Piece]:
    """Any norm that is affine in its weight, which was tried out by `_norm_kind`."""
    zeros = _with_weight(module, 0.0, kept)
    return _scaled(_with_weight(module, 1.0, kept) - zeros, grad, module.weight.dim())


def _linear_norm(module: Any, kept: Tensor, grad: Tensor) -> dict[str, Piece]:
    """The usual ones, which are 0 where their weight is: half of the work."""
    return _scaled(_with_weight(module, 1.0, kept), grad, module.weight.dim())


def _with_weight(module: nn.Module, value: float, x: Tensor) -> Tensor:
    weight = torch.full_like(module.get_parameter("weight"), value)
    found: Tensor = functional_call(module, {"weight": weight}, (x,))
    return found


def _norm_kind(module: nn.Module) -> Kind | None:
    """The kind of a norm of whatever model, tried out on noise; None where it is not affine."""
    weight = module.get_parameter("weight")
    noise = torch.Generator().manual_seed(0)
    made = [torch.randn(3, *weight.shape, generator=noise) for _ in range(2)]
    x, other = (one.to(weight.device, weight.dtype) for one in made)
    with torch.no_grad():
        ones, zeros = _with_weight(module, 1.0, x), _with_weight(module, 0.0, x)
        out = functional_call(module, {"weight": other[0]}, (x,))
    if not torch.allclose(out, zeros + other[0] * (ones - zeros), rtol=1e-2, atol=1e-2):
        return None
    return LINEAR_NORM if not zeros.any() else AFFINE_NORM


def _dora_output(module: nn.Module, inputs: Inputs, output: Tensor) -> Tensor:
    """Output before the base layer's own part is taken off; linear in the magnitudes."""
    named = inputs[1]
    base, result = named["base_layer"], named.get("base_result")
    if result is None:
        weight = base.weight.T if module.fan_in_fan_out else base.weight
        result = functional.linear(first_input(inputs), weight)
    elif base.bias is not None:
        result = result - base.bias
    return (output + result).detach()


def _dora(module: Any, kept: Tensor, grad: Tensor) -> dict[str, Piece]:
    return {"weight": Dense(_rows(grad * kept).sum(1) / module.weight.detach())}


LINEAR, CONV1D = Kind(_input, _linear), Kind(_input, _conv1d)
EMBEDDING, LAYER_NORM = Kind(_input, _embedding), Kind(_input, _layer_norm)
AFFINE_NORM, LINEAR_NORM = Kind(_input, _affine_norm), Kind(_input, _linear_norm)
DORA = Kind(_dora_output, _dora)


def kind_of(module: nn.Module) -> Kind | None:
    """How the module's own parameters are taken; None where that is not known.

    A subclass that computes something else in its `forward` is not the kind that it inherits from.
    """
    from transformers.pytorch_utils import Conv1D

    forward = type(module).forward
    if isinstance(module, nn.Embedding):
        odd = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        return EMBEDDING if forward is nn.Embedding.forward and not odd else None
    for base, kind in ((nn.Linear, LINEAR), (Conv1D, CONV1D), (nn.LayerNorm, LAYER_NORM)):
        if isinstance(module, base):
            return kind if forward is base.forward else None
    if type(module).__name__ == "DoraLinearLayer" and type(module).__module__.startswith("peft."):
        return DORA
    if type(module).__name__.endswith("RMSNorm") and [*module._parameters] == ["weight"]:
        return _norm_kind(module)
    return None


def covered(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[nn.Module, Kind]:
    """The modules that hold `parameters`, and how each one's gradients are taken.

    Raises:
        ConfigError: one of the parameters lies in a module of an unknown kind, or a module mixes
            the rows of a batch.
    """
    wanted = {id(parameter) for parameter in parameters.values()}
    found: dict[nn.Module, Kind] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"{name or 'the model'} is a {type(module).__name__}, which mixes the rows of a "
                "batch, so no row has a gradient of its own: use LayerNorm or GroupNorm"
            )
        own = [
            part
            for part, held in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(held) in wanted
        ]
        if not own:
            continue
        kind = kind_of(module)
        if kind is None:
            raise ConfigError(
                f"the gradient of {f'{name}.{own[0]}'.lstrip('.')} cannot be taken sample by "
                f"sample: a {type(module).__name__} is no layer that Riprap knows (Linear, Conv1D, "
                "Embedding, LayerNorm, RMSNorm, DoRA's magnitudes); freeze it"
            )
        found[module] = kind
    return found
