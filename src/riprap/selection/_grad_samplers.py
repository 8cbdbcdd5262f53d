"""Grad samplers: per-sample gradients of each supported kind of layer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList

from riprap.errors import ConfigError
from riprap.selection._grad_factors import DenseGrad, EmbeddingGrad, GradFactor, OuterProductGrad

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class GradSampler:
    """Two functions that give the per-sample gradients of one kind of layer."""

    # (module, its arguments, its output) -> the tensor to save for the backward pass
    save: Callable[[nn.Module, Inputs, Tensor], Tensor]
    # (module, saved tensor, gradient in the output) -> factors by the parameter's name
    factors: Callable[[Any, Tensor, Tensor], dict[str, GradFactor]]


def first_input(inputs: Inputs) -> Tensor:
    """Return a layer's first argument."""
    args, named = inputs
    first: Tensor = args[0] if args else next(iter(named.values()))
    return first


def _save_input(_module: nn.Module, inputs: Inputs, _output: Tensor) -> Tensor:
    return first_input(inputs).detach()


def _flatten_positions(tensor: Tensor, n_last: int = 1) -> Tensor:
    """Reshape to (batch, T, …), with the last `n_last` dimensions unchanged."""
    return tensor.reshape(len(tensor), -1, *tensor.shape[tensor.dim() - n_last :])


def _linear(
    module: Any, saved: Tensor, grad: Tensor, transposed: bool = False
) -> dict[str, GradFactor]:
    backprops = _flatten_positions(grad)
    inputs = _flatten_positions(saved).to(backprops.dtype)
    factors: dict[str, GradFactor] = {"weight": OuterProductGrad(backprops, inputs, transposed)}
    if module.bias is not None:
        factors["bias"] = DenseGrad(backprops.sum(1))
    return factors


def _embedding(module: nn.Embedding, saved: Tensor, grad: Tensor) -> dict[str, GradFactor]:
    backprops, ids = _flatten_positions(grad), saved.reshape(len(saved), -1)
    if module.padding_idx is not None:
        backprops = backprops * (ids != module.padding_idx)[..., None]
    return {"weight": EmbeddingGrad(backprops, ids, module.num_embeddings)}


def _affine_factors(normalized: Tensor, grad: Tensor, n_last: int) -> dict[str, GradFactor]:
    return {
        "weight": DenseGrad(_flatten_positions(grad * normalized, n_last).sum(1)),
        "bias": DenseGrad(_flatten_positions(grad, n_last).sum(1)),
    }


def _layer_norm(module: nn.LayerNorm, saved: Tensor, grad: Tensor) -> dict[str, GradFactor]:
    shape = list(module.normalized_shape)
    normalized = functional.layer_norm(saved.to(grad.dtype), shape, eps=module.eps)
    return _affine_factors(normalized, grad, len(shape))


def _affine_norm(module: Any, saved: Tensor, grad: Tensor) -> dict[str, GradFactor]:
    """Factors of a norm that is affine in its weight (`_norm_sampler` tests this)."""
    zeros = _with_weight(module, 0.0, saved)
    return _affine_factors(_with_weight(module, 1.0, saved) - zeros, grad, module.weight.dim())


def _linear_norm(module: Any, saved: Tensor, grad: Tensor) -> dict[str, GradFactor]:
    """Factors of a usual norm, which is 0 if its weight is 0: half of the work."""
    return _affine_factors(_with_weight(module, 1.0, saved), grad, module.weight.dim())


def _with_weight(module: nn.Module, value: float, x: Tensor) -> Tensor:
    weight = torch.full_like(module.get_parameter("weight"), value)
    output: Tensor = functional_call(module, {"weight": weight}, (x,))
    return output


def _norm_sampler(module: nn.Module) -> GradSampler | None:
    """Sampler of any model's norm, tested on noise; None if the norm is not affine."""
    weight = module.get_parameter("weight")
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(3, *weight.shape, generator=generator) for _ in range(2)]
    x, other = (tensor.to(weight.device, weight.dtype) for tensor in noise)
    with torch.no_grad():
        ones, zeros = _with_weight(module, 1.0, x), _with_weight(module, 0.0, x)
        out = functional_call(module, {"weight": other[0]}, (x,))
    if not torch.allclose(out, zeros + other[0] * (ones - zeros), rtol=1e-2, atol=1e-2):
        return None
    return LINEAR_NORM if not zeros.any() else AFFINE_NORM


def _save_dora_output(module: nn.Module, inputs: Inputs, output: Tensor) -> Tensor:
    """Output before the base layer's own part is subtracted; linear in the magnitudes."""
    named = inputs[1]
    base, result = named["base_layer"], named.get("base_result")
    if result is None:
        weight = base.weight.T if module.fan_in_fan_out else base.weight
        result = functional.linear(first_input(inputs), weight)
    elif base.bias is not None:
        result = result - base.bias
    return (output + result).detach()


def _dora(module: Any, saved: Tensor, grad: Tensor) -> dict[str, GradFactor]:
    return {"weight": DenseGrad(_flatten_positions(grad * saved).sum(1) / module.weight.detach())}


LINEAR = GradSampler(_save_input, _linear)
CONV1D = GradSampler(_save_input, partial(_linear, transposed=True))
EMBEDDING, LAYER_NORM = GradSampler(_save_input, _embedding), GradSampler(_save_input, _layer_norm)
AFFINE_NORM = GradSampler(_save_input, _affine_norm)
LINEAR_NORM = GradSampler(_save_input, _linear_norm)
DORA = GradSampler(_save_dora_output, _dora)


def sampler_for(module: nn.Module) -> GradSampler | None:
    """Return the sampler of a module's own parameters; None if the module is not supported.

    A subclass with a `forward` of its own is not supported.
    """
    forward = type(module).forward
    if isinstance(module, nn.Embedding):
        changed = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        return EMBEDDING if forward is nn.Embedding.forward and not changed else None
    samplers: list[tuple[Any, GradSampler]] = [(nn.Linear, LINEAR), (nn.LayerNorm, LAYER_NORM)]
    if "transformers.pytorch_utils" in sys.modules:  # imported if the model has such a layer
        samplers.append((sys.modules["transformers.pytorch_utils"].Conv1D, CONV1D))
    for base, sampler in samplers:
        if isinstance(module, base):
            return sampler if forward is base.forward else None
    if type(module).__name__ == "DoraLinearLayer" and type(module).__module__.startswith("peft."):
        return DORA
    if type(module).__name__.endswith("RMSNorm") and [*module._parameters] == ["weight"]:
        return _norm_sampler(module)
    return None


def supported_layers(
    model: nn.Module, parameters: Mapping[str, Tensor]
) -> dict[nn.Module, GradSampler]:
    """Return the modules that hold `parameters`, with their samplers; refuse unsupported ones."""
    wanted = {id(parameter) for parameter in parameters.values()}
    layers: dict[nn.Module, GradSampler] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"{name or 'the model'} is a {type(module).__name__}, which mixes the rows of a "
                "batch, so no row has a gradient of its own: use LayerNorm or GroupNorm"
            )
        own = [part for part, parameter in module._parameters.items() if id(parameter) in wanted]
        if not own:
            continue
        sampler = sampler_for(module)
        # weight_norm and spectral_norm compute a weight from these parameters.
        computed = isinstance(module, ParametrizationList) or (
            isinstance(module, nn.Linear) and not {*own} <= {"weight", "bias"}
        )
        if computed:
            raise ConfigError(
                f"per-sample gradients of {f'{name}.{own[0]}'.lstrip('.')} are not supported: the "
                "layer's weight is computed from other parameters (weight_norm, spectral_norm); "
                "freeze them, or remove the parametrization before training"
            )
        if sampler is None:
            raise ConfigError(
                f"per-sample gradients of {f'{name}.{own[0]}'.lstrip('.')} are not supported: it "
                f"lies in a {type(module).__name__}, and supported layers are Linear, Conv1D, "
                "Embedding, LayerNorm, RMSNorm and DoRA's magnitudes; freeze it"
            )
        layers[module] = sampler
    return layers
