"""Snapshots of a model's parameters, buffers and attributes, put back after a pass over probes.

Contents of buffers are copied, as bytes of their storage, so that views, expanded and quantized
tensors are like any other. A large buffer that the first pass left alone is not copied again: a
sample shows whether a later pass writes to it, which is refused. Large buffers of integers, in
which quantized models keep their weights, are never copied. Contents of parameters are not copied:
a pass may give a parameter another storage, as modules do that repack their weight, and the old one
is put back; what a pass writes into the storage of a parameter stays (see `refuse_writes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakIdKeyDictionary

from riprap.errors import BehaviorError
from riprap.linalg import to_local

_BLOCK_WORDS = 2**13  # words of 8 bytes that share a check sum
_COPIED_WORDS = 2**14  # up to this size a tensor is copied, not summed
_SAMPLED_WORDS = 2**8  # of a large buffer that no pass writes to
_ALWAYS_COPIED_BYTES = 2**17  # up to this size a buffer is copied at every pass
_COPIED_INTEGER_BYTES = 2**20  # up to this size a buffer of integers is copied at its first pass
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
        self._buffers = [(name, _content(buffer)) for name, buffer in buffers.values()]

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
        tables_now = [getattr(module, name) for name in _TABLES]
        if all(map(_unchanged, [vars(module), *tables_now], [attributes, *tables])):
            return
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


def _unchanged(own: Any, saved: dict[str, Any]) -> bool:
    """Return whether a dictionary holds the same objects in the same order; fast."""
    same = len(own) == len(saved) and all(map(is_, own.values(), saved.values()))
    return same and list(own) == list(saved)


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


_WRITTEN = WeakIdKeyDictionary()  # large buffer -> whether its first pass wrote to it


def _content(buffer: Tensor) -> _Content | _LargeContent:
    """Note the content of a buffer, as far as it must be known to put it back."""
    parts = plain_tensors(buffer)
    n_bytes = sum(_span(part)[1] for part in parts)
    if n_bytes <= _ALWAYS_COPIED_BYTES or _WRITTEN.get(buffer) is True or is_wrapped(buffer):
        return _Content(buffer)
    return _LargeContent(buffer, parts[0], n_bytes)


class _LargeContent:
    """Marks that show a write to a large buffer, and on the first pass its content."""

    def __init__(self, buffer: Tensor, part: Tensor, n_bytes: int) -> None:
        self._buffer, self._version, self._place = buffer, buffer._version, buffer.data
        self._storage = part.untyped_storage()
        self._storage_bytes = self._storage.nbytes()
        self._words = _words(self._storage, _span(part))
        self._copy: _Content | None = None
        self._sums: list[Tensor] = []
        if buffer not in _WRITTEN:
            if buffer.is_floating_point() or n_bytes <= _COPIED_INTEGER_BYTES:
                self._copy = _Content(buffer)
            else:
                self._sums = _check_sums(buffer)
        self._sample = _sample(self._words)

    def restore(self) -> None:
        """Put the buffer back if its content was copied.

        Raises:
            RuntimeError: a pass has written to it, and its content was not copied.
        """
        buffer = self._buffer
        touched = buffer._version != self._version
        if self._copy is not None:
            _WRITTEN[buffer] = self._copy.restore() or touched
            return
        if not _same_place(buffer, self._place):
            buffer.data = self._place
        same = self._storage.nbytes() >= self._storage_bytes
        same = same and torch.equal(_sample(self._words), self._sample)
        if same and self._sums:
            same = all(map(torch.equal, _check_sums(buffer), self._sums))
        elif touched:
            same = False
        if not same:
            _WRITTEN[buffer] = True  # from now on it is copied
            raise RuntimeError(
                "it was written to; large buffers are not copied if they hold integers, or if the "
                "first pass left them alone"
            )
        if not touched:
            _WRITTEN[buffer] = False


def _sample(words: Tensor) -> Tensor:
    return words[:: max(1, len(words) // _SAMPLED_WORDS)].clone()


class _Content:
    """Content of a buffer, and where it lies."""

    def __init__(self, buffer: Tensor) -> None:
        self._buffer, self._version = buffer, buffer._version
        self._parts = [_Part(part) for part in plain_tensors(buffer)]
        self._sparse: Tensor | None = None
        self._data = None if is_wrapped(buffer) else buffer.data
        if not self._parts and not buffer.is_meta and self._data is not None:
            self._sparse = self._data.clone()

    def restore(self) -> bool:
        """Put storage, shape and content back, where they changed; return whether they did.

        Raises:
            RuntimeError: the layout of the buffer does not allow it.
        """
        buffer, kept = self._buffer, self._sparse
        if kept is not None:  # a write may change the parts of a sparse tensor, or replace them
            if buffer._version == self._version and _equal(buffer, kept):
                return False
            buffer.data = kept
            if not _equal(buffer, kept):  # ignored by some layouts
                buffer.copy_(kept)
            if not _equal(buffer, kept):
                raise RuntimeError(f"a tensor of layout {buffer.layout} cannot be written")
            return True
        for part in self._parts:
            part.resize()
        moved = self._data is not None and not _same_place(buffer, self._data)
        if moved and self._data is not None:
            buffer.data = self._data
        return any([moved, *[part.restore() for part in self._parts]])


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

    def restore(self) -> bool:
        """Put the bytes back; return whether there were others."""
        now = _words(self._storage, self._span)
        # Compared by value: writes through `.data` do not change a tensor's version.
        if torch.equal(now, self._saved):
            return False
        now.copy_(self._saved)
        return True


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

    Also into large buffers, after a first pass that left them alone. Compares check sums, so that
    no copy is needed.

    Raises:
        BehaviorError: a parameter or large buffer has another content on exit.
    """
    before = {name: _check_sums(tensor) for name, tensor in _not_copied(model)}
    yield
    for name, tensor in _not_copied(model):
        now = _check_sums(tensor)
        old = before.get(name, now)
        if len(old) != len(now) or not all(map(torch.equal, old, now)):
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            raise BehaviorError(
                f"a pass over probes wrote to the {kind} {name!r}, so training would not be "
                "the same with a monitor: neither a margin function nor the model's forward in "
                "evaluation mode may write to parameters"
            )


def _not_copied(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        if sum(_span(part)[1] for part in plain_tensors(buffer)) > _ALWAYS_COPIED_BYTES:
            yield name, buffer


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
