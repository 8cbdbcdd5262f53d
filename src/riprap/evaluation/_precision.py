"""Precision of passes over probes: training's own autocast state, with logits in float32.

Half precision rounds logits to steps of up to 1/16, and margins with them. So the output layer is
computed in float32, whatever the precision of the layers before it.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from riprap.behaviors import device_of, inner_autocast, logits_of
from riprap.errors import BehaviorError
from riprap.evaluation._token_budget import note_training_tokens, tokens_in

Autocast = torch.dtype | bool  # False: off; True: on, with the device's default dtype
_HALF = (torch.float16, torch.bfloat16)
_DTYPE_ERROR = re.compile(r"dtype|scalar type|same type|BFloat16|Half")

_N_PASSES = 0  # passes over probes that are running; a plain global, see `_prefix_cache`


@dataclass
class _Known:
    """Knowledge about a model.

    Attributes:
        given: the state that the user gave.
        hook: sees the state of training's own passes.
        assumed: a state in which the model runs, before training has shown its own.
        output_layer: found in a pass, where the model does not name it.
        searched: whether a pass has looked for it.
    """

    given: Autocast | None = None
    hook: AutocastHook | None = None
    assumed: Autocast | None = None
    output_layer: weakref.ref[nn.Module] | None = None
    searched: bool = False


_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _known(model: nn.Module) -> _Known:
    return _KNOWN.setdefault(model, _Known())


@contextmanager
def in_pass() -> Iterator[None]:
    """Mark a pass over probes, which hooks of training must not take for training."""
    global _N_PASSES
    _N_PASSES += 1
    try:
        yield
    finally:
        _N_PASSES -= 1


def is_in_pass() -> bool:
    """Return whether a pass over probes is running, and not one of training."""
    return _N_PASSES > 0


class AutocastHook:
    """Forward pre-hook that stores the autocast state and the largest batch of training's passes.

    Can be copied and pickled with the model that it is registered on.
    """

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self.seen: Autocast | None = None
        self.tokens = 0

    def __call__(self, module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        if _N_PASSES == 0 and module.training and torch.is_grad_enabled():
            enabled = torch.is_autocast_enabled(self.device_type)
            self.seen = torch.get_autocast_dtype(self.device_type) if enabled else False
            self.tokens = max(self.tokens, tokens_in(arguments, named))


class TrainingAutocast:
    """The autocast state of one model's training, for all passes over probes in this model.

    It also notes the number of tokens of training's batches, see `token_budget`.

    Args:
        autocast: None: that of training's own passes, seen by a hook until the first step; before
            it, the state where the monitor begins, or the only one in which the model runs.
    """

    def __init__(self, model: nn.Module, autocast: Autocast | None = None) -> None:
        self.model = model
        self._handles: list[RemovableHandle] = []
        self._compiled: Any = None
        self._hook: AutocastHook | None = None
        self._inner: AutocastHook | None = None
        self._at_start: Autocast = False
        _known(model).given = autocast

    def attach(self) -> None:
        """Begin to look at training's passes."""
        known = _known(self.model)
        self._at_start = autocast_state(self.model)
        hook = self._hook = AutocastHook(device_of(self.model).type)
        if known.given is None:
            if known.hook is not None and known.hook.seen is not None:  # of an earlier watch
                known.assumed = known.hook.seen
            known.hook = hook
        has_compiled = any(
            m._compiled_call_impl is not None or "_orig_mod" in m._modules
            for m in self.model.modules()
        )
        if self.model._compiled_call_impl is not None:  # a hook would be a part of the graph
            self._compiled = self.model._compiled_call_impl
            self.model._compiled_call_impl = _call_after(hook, self.model, self._compiled)
        else:
            self._handles = [self.model.register_forward_pre_hook(hook, with_kwargs=True)]
        if known.given is not None:
            return
        inner = [] if has_compiled else _owners(self.model)
        self._inner = AutocastHook(hook.device_type)
        self._handles += [
            module.register_forward_pre_hook(self._inner, with_kwargs=True) for module in inner
        ]

    def settle(self) -> str:
        """Stop to look, after the first step.

        Returns:
            a sentence if the probes before the first step were evaluated in another state.
        """
        known = _known(self.model)
        if not self._handles and self._compiled is None:
            return ""
        self.detach()
        if self._hook is not None:
            note_training_tokens(self.model, self._hook.tokens)
        if known.hook is not None and self._inner is not None and known.hook.seen is None:
            known.hook.seen = self._inner.seen  # training calls parts of the model
        state = autocast_state(self.model)
        if state == self._at_start:
            return ""
        return (
            f"training runs {_describe(state)}, and the probes before the first step were "
            f"evaluated {_describe(self._at_start)}: to evaluate all of them alike, pass "
            f"Monitor(..., autocast={state if state else False})"
        )

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        if self._compiled is not None:
            self.model._compiled_call_impl = self._compiled
        self._handles, self._compiled = [], None

    def close(self) -> None:
        """Remove the hooks, and forget the state that the user gave."""
        self.detach()
        _known(self.model).given = None


def _describe(state: Autocast) -> str:
    return f"under {str(state).removeprefix('torch.')} autocast" if state else "without autocast"


def _owners(model: nn.Module) -> list[nn.Module]:
    """Return the modules inside the model that have trained parameters of their own."""
    return [
        module
        for module in model.modules()
        if module is not model
        and any(p is not None and p.requires_grad for p in module._parameters.values())
    ]


def _call_after(hook: AutocastHook, model: nn.Module, call: Callable[..., Any]) -> Any:
    def compiled(*arguments: Any, **named: Any) -> Any:
        hook(model, arguments, named)
        return call(*arguments, **named)

    return compiled


def autocast_state(model: nn.Module) -> Autocast:
    """Return the autocast state of passes over probes: training's, as far as it is known.

    Where it is not, that of the caller.
    """
    known, kind = _known(model), device_of(model).type
    seen = None if known.hook is None else known.hook.seen
    for state in (known.given, seen, known.assumed):
        if state is not None:
            return torch.get_autocast_dtype(kind) if state is True else state
    available = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if available else False


def adopt_autocast(model: nn.Module, autocast: Autocast | None, error: Exception) -> bool:
    """Assume that a model whose pass failed runs only under autocast; return whether to repeat.

    Raises:
        BehaviorError: the pass failed because of its precision, which the caller chose or which
            was tried already.
    """
    if not _DTYPE_ERROR.search(str(error)):
        return False
    known = _known(model)
    halves = [p.dtype for p in model.parameters() if p.dtype in _HALF]
    state = autocast_state(model) if autocast is None else autocast
    unknown = autocast is None and known.given is None and known.assumed is None
    if unknown and not state and halves and (known.hook is None or known.hook.seen is None):
        known.assumed = max(set(halves), key=halves.count)
        return True
    if not state and not halves:
        return False
    known.assumed = None
    raise BehaviorError(
        f"the model does not run {_describe(state)} in passes over probes ({error}): pass "
        f"autocast={'False' if state else 'torch.bfloat16'} to the monitor, or None for the state "
        "in which it is trained"
    ) from error


def _autocast(kind: str, state: Autocast) -> AbstractContextManager[Any]:
    """Return the autocast context. A copy in its cache might have no graph: the cache is off."""
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    dtype = state if isinstance(state, torch.dtype) else torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, enabled=bool(state), cache_enabled=False)


class Precision:
    """Precision of one pass.

    Attributes:
        learned: whether the pass found the output layer, after it was computed in half precision.
    """

    def __init__(self, model: nn.Module, autocast: Autocast | None, float32_logits: bool) -> None:
        self._model, self._kind, self.learned = model, device_of(model).type, False
        self._float32_logits = float32_logits
        self._explicit = autocast is not None or _known(model).given is not None
        self._state = autocast_state(model) if autocast is None else autocast

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run the body of a `with` statement in this precision."""
        with ExitStack() as stack:
            stack.enter_context(_autocast(self._kind, self._state))
            wrapped = [m for m in self._model.modules() if "_original_forward" in vars(m)]
            for module in wrapped:
                stack.enter_context(self._unwrapped(module))
            if self._float32_logits:
                stack.enter_context(self._float32_output(bool(wrapped)))
            yield

    @contextmanager
    def _unwrapped(self, module: Any) -> Iterator[None]:
        """Replace Accelerate's autocast inside of `forward`, which would use the cache."""
        own = _find_autocast(module.forward)
        if own is None:
            yield
            return
        state: Autocast = own.fast_dtype if own._enabled else False
        state = self._state if self._explicit else state
        original = module._original_forward

        @functools.wraps(original)
        def forward(*arguments: Any, **named: Any) -> Any:
            from accelerate.utils.operations import convert_to_fp32

            with _autocast(self._kind, state):
                return convert_to_fp32(original(*arguments, **named))

        with inner_autocast(state), _replaced_forward(module, forward):
            yield

    @contextmanager
    def _float32_output(self, wrapped: bool) -> Iterator[None]:
        layer, known = output_layer(self._model), _known(self._model)
        if layer is not None:
            with _replaced_forward(layer, _in_float32(layer, self._kind)):
                yield
            return
        half = any(p.dtype in _HALF for p in self._model.parameters())
        half = half or wrapped or bool(self._state)
        if known.searched or not half:
            yield
            return
        with _search_output_layer(self._model) as found:
            yield
        known.searched = bool(found)
        if found and found[-1] is not None:
            known.output_layer = weakref.ref(found[-1])
            self.learned = True


def _find_autocast(function: Any, depth: int = 8) -> Any:
    """Return the autocast context in which a decorated function runs; None if there is none."""
    if isinstance(function, torch.autocast) or depth == 0:
        return function if isinstance(function, torch.autocast) else None
    cells = getattr(function, "__closure__", None) or ()
    inner = [getattr(function, name, None) for name in ("__func__", "__wrapped__", "model_forward")]
    for cell in cells:
        with suppress(ValueError):  # an empty cell
            inner.append(cell.cell_contents)
    for part in inner:
        if isinstance(part, torch.autocast) or callable(part):
            found = _find_autocast(part, depth - 1)
            if found is not None:
                return found
    return None


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def output_layer(model: nn.Module) -> nn.Module | None:
    """Return the layer that computes the logits; None if it is not known."""
    getter = getattr(model, "get_output_embeddings", None)
    if callable(getter):
        with suppress(Exception):  # models without one raise errors of many kinds
            layer = getter()
            if isinstance(layer, nn.Module):
                return layer
    known = _KNOWN.get(model)
    return None if known is None or known.output_layer is None else known.output_layer()


def _in_float32(layer: nn.Module, kind: str) -> Callable[..., Any]:
    original = layer.forward

    @functools.wraps(original)
    def forward(*arguments: Any, **named: Any) -> Any:
        parts = [
            (module, name, parameter)
            for module in layer.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.dtype in _HALF
        ]
        plain = all(type(parameter) in (nn.Parameter, Tensor) for *_, parameter in parts)
        halves = any(isinstance(x, Tensor) and x.dtype in _HALF for x in arguments)
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if not plain or not (parts or halves or autocast):
            return original(*arguments, **named)
        arguments = tuple(_upcast(argument) for argument in arguments)
        named = {name: _upcast(argument) for name, argument in named.items()}
        try:
            for module, name, parameter in parts:
                module._parameters[name] = parameter.float()  # type: ignore[assignment]
            with _autocast(kind, False):
                return original(*arguments, **named)
        finally:
            for module, name, parameter in parts:
                module._parameters[name] = parameter

    return forward


def _upcast(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


@contextmanager
def _search_output_layer(model: nn.Module) -> Iterator[list[nn.Module | None]]:
    """Find the last layer with a weight matrix that is called, if its output is like the logits.

    Yields a list: empty if the model was not called; its last entry is None if there is no such
    layer, or if its output has full precision.
    """
    found: list[nn.Module | None] = []
    last: list[tuple[nn.Module, Any]] = []

    def on_layer(layer: nn.Module, _arguments: Any, output: Any) -> None:
        last[:] = [(layer, output)]

    def on_model(_model: nn.Module, _arguments: Any, output: Any) -> None:
        found.append(None)
        with suppress(BehaviorError):  # the caller refuses a model without logits
            logits = logits_of(output)
            layer, values = last[-1] if last else (None, None)
            same = isinstance(values, Tensor) and values.shape[-1:] == logits.shape[-1:]
            if same and isinstance(values, Tensor) and values.dtype in _HALF:
                found[-1] = layer

    layers = [m for m in model.modules() if m is not model and _has_matrix(m)]
    handles = [layer.register_forward_hook(on_layer) for layer in layers]
    handles.append(model.register_forward_hook(on_model))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _has_matrix(module: nn.Module) -> bool:
    own: Sequence[Any] = list(module._parameters.values())
    is_lookup = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    return not is_lookup and any(p is not None and p.dim() == 2 for p in own)
