"""Stacks of vectors in parameter space: one pass gives the inner products with all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from riprap.linalg._param_vectors import (
    Differences,
    Vector,
    all_reduce_sums,
    device_mesh,
    norm,
    row_products,
    split_blocks,
    sum_in_float64,
    sum_squares,
    to_local,
    upcast,
)

CHUNK_ELEMENTS = 2**22  # elements concatenated at a time: few kernels on an accelerator
CPU_CHUNK_ELEMENTS = 2**18  # which fit into the cache
STORAGE_DTYPES = ("float32", "bfloat16", "int8")
BLOCK_SIZE = 256  # elements that share a scale in 8 bits


def make_chunks(like: Sequence[Tensor]) -> list[slice]:
    """Group neighboring parameters into chunks that are concatenated: few kernels, little memory.

    The parameters of a chunk share device, dtype and mesh and have a limited number of elements
    together; a larger parameter is a chunk of its own, and is never copied.
    """
    chunks: list[slice] = []
    begin, elements = 0, 0
    for index, part in enumerate(like):
        same = index > begin and _placement(part) == _placement(like[begin])
        limit = CPU_CHUNK_ELEMENTS if part.device.type == "cpu" else CHUNK_ELEMENTS
        if index > begin and (not same or elements + part.numel() > limit):
            chunks.append(slice(begin, index))
            begin, elements = index, 0
        elements += part.numel()
    return [*chunks, slice(begin, len(like))] if like else []


def _placement(part: Tensor) -> tuple[torch.device, torch.dtype, DeviceMesh | None]:
    return part.device, part.dtype, device_mesh(part)


def _flatten(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the parts, shape (elements,), in at least float32."""
    if len(parts) == 1:
        return upcast(to_local(parts[0])).reshape(-1)
    return upcast(torch.cat([to_local(part).reshape(-1) for part in parts]))


class FlatVector:
    """A vector in flat chunks, for use with several stacks.

    The chunks of `Differences` are computed each time they are read, so that one chunk exists at a
    time; those of other vectors are kept.

    Args:
        vector: one tensor for each parameter; of sharded tensors this rank's shards are used.
        chunks: slices of the parameters; empty: those of `make_chunks`.
    """

    def __init__(self, vector: Sequence[Tensor], chunks: Sequence[slice] = ()) -> None:
        self.vector = vector
        like = vector.now if isinstance(vector, Differences) else vector
        self.chunks = list(chunks) or make_chunks(like)
        self._kept = None if isinstance(vector, Differences) else list(self._flat_chunks())
        self._meshes = [device_mesh(like[chunk.start]) for chunk in self.chunks]

    def _flat_chunks(self) -> Iterator[Tensor]:
        return (_flatten(self.vector[chunk]) for chunk in self.chunks)

    def __iter__(self) -> Iterator[Tensor]:
        return self._flat_chunks() if self._kept is None else iter(self._kept)

    @property
    def parts(self) -> list[Tensor]:
        """All flat chunks, shape (elements,) each."""
        return list(self)

    def norm(self) -> float:
        """Compute the Euclidean norm, over all ranks."""
        squares: list[Tensor] = []
        for part in self:
            own = sum_squares(torch._foreach_norm(split_blocks(part)))
            squares.append(own.to(squares[0].device) if squares else own)
        return float(all_reduce_sums(zip(self._meshes, squares, strict=True)).sqrt())


class VectorStack:
    """Stack of vectors: one pass gives the inner products with all of them.

    Args:
        vectors: by name, all over the same parameters. They are copied in chunks, on the
            parameters' devices.
        storage: "float32" (exact), "bfloat16" (half of the memory), or "int8" (a quarter: blocks
            of 256 share a scale, as in 8-bit optimizers, Dettmers et al., 2110.02861, but linear).
        capacity: number of vectors for which memory is reserved; `add` takes up to so many.

    Raises:
        ValueError: `storage` is not one of these.
    """

    def __init__(
        self, vectors: dict[str, Vector], storage: str = "float32", capacity: int = 0
    ) -> None:
        if storage not in STORAGE_DTYPES:
            raise ValueError(f"storage={storage!r}; choose one of {', '.join(STORAGE_DTYPES)}")
        self.names: list[str] = []
        self.norms: dict[str, float] = {}
        self._storage, self._capacity = storage, max(capacity, len(vectors))
        self._gram: Tensor | None = None
        self._reserved: list[list[Tensor]] = []  # shape (capacity, …) of each chunk
        self._rows: list[list[Tensor]] = []  # the rows of them that are in use
        self._build_layout([])
        for name, vector in vectors.items():
            self.add(name, vector)

    def add(self, name: str, vector: Vector) -> None:
        """Add a copy of a vector over the same parameters.

        Raises:
            ValueError: the stack is full, or has a vector of this name.
        """
        n = len(self.names)
        if n == self._capacity or name in self.names:
            raise ValueError(f"no place for {name!r} in a stack of {', '.join(self.names)}")
        if n == 0:
            self._build_layout(vector)
        for at, chunk in enumerate(self.chunks):
            own = quantize(_flatten(vector[chunk])[None], self._storage)
            if n == 0:
                self._reserved.append([p.new_empty(self._capacity, *p.shape[1:]) for p in own])
            for reserved, part in zip(self._reserved[at], own, strict=True):
                reserved[n : n + 1] = part
        self.names.append(name)
        self.norms[name], self._gram = float(norm(vector)), None
        self._rows = [[part[: n + 1] for part in parts] for parts in self._reserved]

    def _build_layout(self, like: Sequence[Tensor]) -> None:
        self.chunks = make_chunks(like)
        self._meshes = [device_mesh(like[chunk.start]) for chunk in self.chunks]
        self._sizes = [sum(to_local(part).numel() for part in like[chunk]) for chunk in self.chunks]

    @property
    def nbytes(self) -> int:
        """Memory of the stacked vectors on this rank."""
        return sum(part.nbytes for parts in self._rows for part in parts)

    @property
    def not_finite(self) -> list[str]:
        """The names of stacked vectors with an element that is not finite."""
        return [name for name in self.names if not math.isfinite(self.norms[name])]

    def inner_products(self, vector: Sequence[Tensor] | FlatVector) -> dict[str, float]:
        """Compute ⟨vector, other⟩ for each of the stacked vectors, by name."""
        if not self.names:
            return {}
        flat = vector if isinstance(vector, FlatVector) else FlatVector(vector, self.chunks)
        if flat.chunks != self.chunks:
            flat = FlatVector(flat.vector, self.chunks)
        device = self._rows[0][0].device
        chunks = zip(map(dequantize, self._rows, self._sizes), flat, strict=True)
        products = [row_products(rows, part.to(rows.dtype)).to(device) for rows, part in chunks]
        sums = all_reduce_sums(zip(self._meshes, products, strict=True))
        return dict(zip(self.names, sums.tolist(), strict=True))

    def gram(self) -> Tensor:
        """Compute ⟨a, b⟩ for all pairs of the stacked vectors, shape (n, n); cached."""
        if self._gram is None:
            device = self._rows[0][0].device
            chunks = map(dequantize, self._rows, self._sizes)
            products = [
                sum_in_float64([own @ own.T for own in split_blocks(rows)]).to(device)
                for rows in chunks
            ]
            self._gram = all_reduce_sums(zip(self._meshes, products, strict=True))
        return self._gram

    def add_combination(self, vector: Sequence[Tensor], weights: Mapping[str, float]) -> Vector:
        """Compute vector + Σ weights[name] · stacked vector, as new tensors with its dtypes.

        For sharded vectors this rank's shards. A stacked vector of weight 0 is not read, so that
        one which is not finite stays out of the sum.
        """
        all_factors = torch.tensor([weights.get(name, 0.0) for name in self.names])
        used = all_factors.nonzero()[:, 0]
        factors = all_factors[used]
        result: Vector = []
        for rows, chunk, size in zip(self._rows, self.chunks, self._sizes, strict=True):
            if len(used) < len(self.names):
                rows = [part[used.to(part.device)] for part in rows]
            stacked = dequantize(rows, size)
            added = torch.mv(stacked.T, factors.to(stacked))
            shapes = [to_local(part).shape for part in vector[chunk]]
            parts = added.split([shape.numel() for shape in shapes])
            for own, part, shape in zip(vector[chunk], parts, shapes, strict=True):
                base = to_local(own)
                result.append((upcast(base) + part.view(shape)).to(base.dtype))
        return result

    def vector(self, name: str, like: Sequence[Tensor]) -> Vector:
        """Return a stacked vector in the shapes of `like`; for sharded ones this rank's shards."""
        row = self.names.index(name)
        result: Vector = []
        for rows, chunk, size in zip(self._rows, self.chunks, self._sizes, strict=True):
            shapes = [to_local(part).shape for part in like[chunk]]
            own = dequantize([part[row : row + 1] for part in rows], size)[0]
            parts = own.split([shape.numel() for shape in shapes])
            result += [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return names, norms and rows; this rank's rows where parameters are sharded."""
        rows = self._rows
        if len(self.names) < self._capacity:  # a view would be saved with what is reserved
            rows = [[part.clone() for part in parts] for parts in rows]
        return {"names": self.names, "norms": self.norms, "rows": rows}

    @classmethod
    def from_state(cls, state: dict[str, Any], like: Sequence[Tensor]) -> VectorStack:
        """Rebuild a stack from `state_dict`, over the parameters `like`.

        Raises:
            ValueError: the state is malformed, or has other shapes than the parameters.
        """
        stack = cls({})
        stack.names, stack.norms = list(state["names"]), dict(state["norms"])
        if sorted(stack.norms) != sorted(stack.names):
            raise ValueError("every vector of a stack needs a name and a norm")
        stack._build_layout(like if stack.names else [])
        shapes = [[tuple(part.shape) for part in parts] for parts in state["rows"]]
        plain = [[(len(stack.names), size)] for size in stack._sizes]
        blocks = [(len(stack.names), -(-size // BLOCK_SIZE)) for size in stack._sizes]
        if shapes not in (plain, [[(*block, BLOCK_SIZE), (*block, 1)] for block in blocks]):
            raise ValueError("the state has other shapes than the trained parameters")
        stack._rows = [
            [part.to(to_local(like[chunk.start]).device) for part in parts]
            for parts, chunk in zip(state["rows"], stack.chunks, strict=True)
        ]
        return stack


def quantize(rows: Tensor, storage: str) -> list[Tensor]:
    """Convert rows of shape (n, elements) to a storage format of `VectorStack`."""
    if storage == "float32":
        return [rows]
    if storage == "bfloat16":
        return [rows.bfloat16()]
    padding = -rows.shape[1] % BLOCK_SIZE
    blocks = torch.nn.functional.pad(rows, (0, padding)).unflatten(1, (-1, BLOCK_SIZE))
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    codes = (blocks / scales.clamp_min(torch.finfo(rows.dtype).tiny)).round().to(torch.int8)
    return [codes, scales]


def dequantize(parts: Sequence[Tensor], size: int) -> Tensor:
    """Invert `quantize` for rows of `size` elements, shape (n, size), in at least float32."""
    if len(parts) == 1:
        return upcast(parts[0])
    codes, scales = parts
    return (codes * scales).flatten(1)[:, :size]
