"""Snapshots of a model's parameters, buffers and attributes, put back after a pass over probes.

Contents of buffers are copied, as bytes of their storage, so that views, expanded and quantized
tensors are like any other. Contents of parameters are not copied: a pass may give a parameter
another storage, as modules do that repack their weight, and the old one is put back; what a pass
writes into the storage of a parameter stays (see `refuse_writes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from riprap.errors import BehaviorError
from riprap.linalg import to_local

_BLOCK_WORDS = 2**13  # words of 8 bytes that share a check sum
_COPIED_WORDS = 2**14  # up to this size a tensor is copied, not summed
_TABLES = ("_parameters", "_buffers", "_modules")


class ModelState:
    """All that a pass over probes may change in a model's modules, and how it is put back."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            (module, dict(vars(module)), [dict(getattr(module, name)) for name in _TABLES])
            for module in model.modules()
        ]
        owned = {
            id(parameter): (module, name, parameter)
            for module, _, (parameters, *_) in self._modules
            for name, parameter in parameters.items()
            if parameter is not None and _has_storage(parameter)
        }
        self._parameters = [(module, name, _Storage(p)) for module, name, p in owned.values()]
        buffers = {id(b): (name, b) for name, b in model.named_buffers()}
        self._buffers = [(name, _Content(buffer)) for name, buffer in buffers.values()]

    def restore(self) -> tuple[list[nn.Module], list[str]]:
        """Put everything back, each part by itself.

        Returns:
            (modules that had given a parameter another storage or entry; what could not be put
            back, one text for each).
        """
        moved: list[nn.Module] = []
        failures: list[str] = []
        for module, attributes, tables in self._modules:
            self._restore_module(module, attributes, tables, moved, failures)
        for module, name, storage in self._parameters:
            with _collected(failures, f"the parameter {name!r} of a {type(module).__name__}"):
                if storage.restore():
                    moved.append(module)
        with torch.no_grad():
            for name, content in self._buffers:
                with _collected(failures, f"the buffer {name!r}"):
                    content.restore()
        return moved, failures

    def _restore_module(
        self,
        module: nn.Module,
        attributes: dict[str, Any],
        tables: list[dict[str, Any]],
        moved: list[nn.Module],
        failures: list[str],
    ) -> None:
        kind = type(module).__name__
        with _collected(failures, f"the attributes of a {kind}"):
            if not type(module).__module__.startswith("torch.distributed.fsdp"):
                _restore_dict(vars(module), attributes)
        for name, saved in zip(_TABLES, tables, strict=True):
            with _collected(failures, f"the {name.removeprefix('_')} of a {kind}"):
                if _restore_dict(getattr(module, name), saved) and name == "_parameters":
                    moved.append(module)


@contextmanager
def _collected(failures: list[str], what: str) -> Iterator[None]:
    """Collect an error, so that the other parts are put back nevertheless."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 reported after everything else was put back
        failures.append(f"{what} ({type(error).__name__}: {error})")


def _restore_dict(own: Any, saved: dict[str, Any]) -> bool:
    """Put the same objects back, in the same order; return whether there were others."""
    if len(own) == len(saved) and all(saved.get(key, own) is value for key, value in own.items()):
        return False
    own.clear()
    own.update(saved)
    return True


def _has_storage(tensor: Tensor) -> bool:
    """Return whether a tensor has its own storage; inside torch.func's transforms it has none."""
    if is_wrapped(tensor) or is_lazy(tensor):
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return tensor.layout != torch.strided
    return True


def is_wrapped(tensor: Tensor) -> bool:
    """Return whether a tensor consists of others, such as DTensors and torchao's weights."""
    return is_traceable_wrapper_subclass(tensor)


class _Storage:
    """Storage, shape and attributes of a parameter, and the attributes of its attributes."""

    def __init__(self, parameter: Tensor) -> None:
        self._parameter, self._alias = parameter, parameter.data
        objects: list[Any] = [parameter, *vars(parameter).values()] if vars(parameter) else []
        self._attributes = [
            (one, dict(vars(one)))
            for one in objects
            if hasattr(one, "__dict__") and not isinstance(one, (nn.Module, type))
        ]

    def restore(self) -> bool:
        """Put the storage back; return whether the parameter had another one, not only a cast."""
        for one, saved in self._attributes:
            _restore_dict(vars(one), saved)
        parameter, alias = self._parameter, self._alias
        if _same_place(parameter, alias):
            return False
        now = parameter.data
        parameter.data = alias
        return now.shape != alias.shape or not torch.equal(now, alias.to(now.dtype))


def _same_place(one: Tensor, two: Tensor) -> bool:
    if one.dtype != two.dtype or one.layout != two.layout or one.shape != two.shape:
        return False
    if one.layout != torch.strided or one.is_meta:
        return one.device == two.device
    return one.stride() == two.stride() and one.data_ptr() == two.data_ptr()


class _Content:
    """Content of a buffer, and where it lies."""

    def __init__(self, buffer: Tensor) -> None:
        self._buffer, self._version = buffer, buffer._version
        self._parts = [_Part(part) for part in plain_tensors(buffer)]
        self._sparse: Tensor | None = None
        self._data = None if is_wrapped(buffer) else buffer.data
        if not self._parts and not buffer.is_meta and self._data is not None:
            self._sparse = self._data.clone()

    def restore(self) -> None:
        """Put storage, shape and content back, where they changed.

        Raises:
            RuntimeError: the layout of the buffer does not allow it.
        """
        buffer, kept = self._buffer, self._sparse
        if kept is not None:  # a write may change the parts of a sparse tensor, or replace them
            if buffer._version == self._version and _equal(buffer, kept):
                return
            buffer.data = kept
            if not _equal(buffer, kept):  # ignored by some layouts
                buffer.copy_(kept)
            if not _equal(buffer, kept):
                raise RuntimeError(f"a tensor of layout {buffer.layout} cannot be written")
            return
        for part in self._parts:
            part.resize()
        if self._data is not None and not _same_place(buffer, self._data):
            buffer.data = self._data
        for part in self._parts:
            part.restore()


def _equal(left: Tensor, right: Tensor) -> bool:
    """Compare tensors that are not strided, part by part."""
    if left.shape != right.shape or left.layout != right.layout:
        return False
    parts = [_sparse_parts(left), _sparse_parts(right)]
    return all(_bits_equal(one, two) for one, two in zip(*parts, strict=True))


def _sparse_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)


def _bits_equal(left: Tensor, right: Tensor) -> bool:
    """Compare tensors bit by bit, so that NaN equals NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    left, right = left.contiguous(), right.contiguous()
    pairs = [_words(part.untyped_storage(), _span(part)) for part in (left, right)]
    return torch.equal(*pairs)


class _Part:
    """The bytes that a strided tensor spans in its storage."""

    def __init__(self, tensor: Tensor) -> None:
        self._storage = tensor.untyped_storage()
        self._storage_bytes = self._storage.nbytes()
        self._span = _span(tensor)
        self._saved = _words(self._storage, self._span).clone()

    def resize(self) -> None:
        """Give a storage that shrank its size back."""
        if self._storage.nbytes() < self._storage_bytes:
            self._storage.resize_(self._storage_bytes)

    def restore(self) -> None:
        """Put the bytes back."""
        now = _words(self._storage, self._span)
        # Compared by value: writes through `.data` do not change a tensor's version.
        if not torch.equal(now, self._saved):
            now.copy_(self._saved)


def _words(storage: torch.UntypedStorage, span: tuple[int, int]) -> Tensor:
    """View bytes of a storage, as 8-byte integers where possible: they are compared faster."""
    begin, length = span
    view = torch.empty(0, dtype=torch.uint8, device=storage.device)
    view.set_(storage, begin, (length,), (1,))  # type: ignore[call-overload]
    return view.view(torch.int64) if length and begin % 8 == length % 8 == 0 else view


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return (first byte, number of bytes) that a strided tensor spans in its storage."""
    size, offset = tensor.element_size(), int(tensor.storage_offset())
    if tensor.numel() == 0:
        return offset * size, 0
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return offset * size, int(extent) * size


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """Return the strided tensors that hold a tensor's data; none on the meta device."""
    tensor = to_local(tensor)
    if is_wrapped(tensor):
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        inner = [getattr(tensor, name) for name in names]
        return [part for one in inner if isinstance(one, Tensor) for part in plain_tensors(one)]
    is_plain = tensor.layout == torch.strided and not tensor.is_meta
    return [tensor] if is_plain and _has_storage(tensor) else []


@contextmanager
def refuse_writes(model: nn.Module) -> Iterator[None]:
    """Refuse passes that write into parameters, which nothing could put back.

    Compares check sums, so that no copy of the parameters is needed.

    Raises:
        BehaviorError: a parameter has another content on exit.
    """
    before = {name: _check_sums(parameter) for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        now = _check_sums(parameter)
        old = before.get(name, now)
        if len(old) != len(now) or not all(map(torch.equal, old, now)):
            raise BehaviorError(
                f"a pass over probes wrote to the parameter {name!r}, so training would not be "
                "the same with a monitor: neither a margin function nor the model's forward in "
                "evaluation mode may write to parameters"
            )


def _check_sums(tensor: Tensor) -> list[Tensor]:
    sums = []
    for part in plain_tensors(to_local(tensor).detach()):
        words = _words(part.untyped_storage(), _span(part))
        if len(words) <= _COPIED_WORDS:
            sums.append(words.clone())
            continue
        whole = words.numel() // _BLOCK_WORDS * _BLOCK_WORDS
        blocks, rest = words[:whole].view(-1, _BLOCK_WORDS), words[whole:]
        sums.append(torch.cat([blocks.sum(1), rest.sum()[None]]))
    return sums
