"""Several vectors in parameter space side by side: one pass gives the products with all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from riprap.linalg._param_vectors import (
    Vector,
    all_reduce_sums,
    device_mesh,
    norm,
    to_local,
    upcast,
)

CHUNK_ELEMENTS = 2**22  # elements joined at a time
STORAGE_DTYPES = ("float32", "bfloat16", "int8")
BLOCK_SIZE = 256  # elements that share a scale in 8 bits


def make_chunks(like: Sequence[Tensor]) -> list[slice]:
    """Runs of neighbouring parameters that are worth joining: few kernels, little extra memory.

    Parts of one chunk share device and dtype and hold at most `CHUNK` elements together; a larger
    part stands alone, and is never copied.
    """
    found: list[slice] = []
    begin, held = 0, 0
    for index, part in enumerate(like):
        alike = index > begin and _placement(part) == _placement(like[begin])
        if index > begin and (not alike or held + part.numel() > CHUNK_ELEMENTS):
            found.append(slice(begin, index))
            begin, held = index, 0
        held += part.numel()
    return [*found, slice(begin, len(like))] if like else []


def _placement(part: Tensor) -> tuple[torch.device, torch.dtype, DeviceMesh | None]:
    return part.device, part.dtype, device_mesh(part)


def _flatten(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after another, shape (elements,), in at least float32."""
    if len(parts) == 1:
        return upcast(to_local(parts[0])).reshape(-1)
    return upcast(torch.cat([to_local(part).reshape(-1) for part in parts]))


class FlatVector:
    """A vector chunk by chunk, for what is asked of it more than once.

    Args:
        vector: as a list of tensors, one a parameter; sharded ones by this rank's part.
        runs: how it is cut; None or empty: by `chunks`.
    """

    def __init__(self, vector: Sequence[Tensor], chunks: Sequence[slice] = ()) -> None:
        self.vector = vector
        self.chunks = list(chunks) or make_chunks(vector)
        self.parts = [_flatten(vector[run]) for run in self.chunks]
        self._meshes = [device_mesh(vector[run.start]) for run in self.chunks]

    def norm(self) -> float:
        """Euclidean norm, over all ranks."""
        home = self.parts[0].device
        sums: dict[DeviceMesh | None, Tensor] = {}
        for part, mesh in zip(self.parts, self._meshes, strict=True):
            square = torch.linalg.vector_norm(part).square().to(home)
            sums[mesh] = sums[mesh] + square if mesh in sums else square
        return float(all_reduce_sums(sums).sqrt())


class VectorStack:
    """Several vectors side by side, so that one pass gives the inner products with all of them.

    Args:
        vectors: by name, all over the same parameters. They are kept chunk by chunk where they
            live, which costs one copy of each vector.
        kept: "float32" (exact), "bfloat16" (half of the memory), or "int8" (a quarter: blocks of
            256 share a scale, as in 8-bit optimizers, Dettmers et al., 2110.02861; but linear).

    Raises:
        ValueError: `kept` is none of these.
    """

    def __init__(self, vectors: dict[str, Vector], storage: str = "float32") -> None:
        if storage not in STORAGE_DTYPES:
            raise ValueError(f"kept={storage!r}: choose one of {', '.join(STORAGE_DTYPES)}")
        self.names = list(vectors)
        self._gram: Tensor | None = None
        every = list(vectors.values())
        self._build_layout(every[0] if every else [])
        self._rows = [
            quantize(torch.stack([_flatten(vector[chunk]) for vector in every]), storage)
            for chunk in self.chunks
        ]
        self.norms = {name: float(norm(vector)) for name, vector in vectors.items()}

    def _build_layout(self, like: Sequence[Tensor]) -> None:
        self.chunks = make_chunks(like)
        self._meshes = [device_mesh(like[chunk.start]) for chunk in self.chunks]
        self._sizes = [sum(to_local(part).numel() for part in like[chunk]) for chunk in self.chunks]

    @property
    def nbytes(self) -> int:
        """Memory that the kept vectors take on this rank."""
        return sum(part.nbytes for parts in self._rows for part in parts)

    def inner_products(self, vector: Sequence[Tensor] | FlatVector) -> dict[str, float]:
        """⟨vector, other⟩ for each of the stacked vectors, by name."""
        if not self.names:
            return {}
        joined = vector if isinstance(vector, FlatVector) else FlatVector(vector, self.chunks)
        if joined.chunks != self.chunks:
            joined = FlatVector(joined.vector, self.chunks)
        home = self._rows[0][0].device
        sums: dict[DeviceMesh | None, Tensor] = {}
        layout = zip(self._rows, joined.parts, self._meshes, self._sizes, strict=True)
        for parts, part, mesh, size in layout:
            rows = dequantize(parts, size)
            products = torch.mv(rows, part.to(rows.dtype)).to(home)
            sums[mesh] = sums[mesh] + products if mesh in sums else products
        return dict(zip(self.names, all_reduce_sums(sums).tolist(), strict=True))

    def gram(self) -> Tensor:
        """⟨a, b⟩ for every two of the stacked vectors, shape (n, n), worked out once."""
        if self._gram is None:
            home = self._rows[0][0].device
            sums: dict[DeviceMesh | None, Tensor] = {}
            for parts, mesh, size in zip(self._rows, self._meshes, self._sizes, strict=True):
                rows = dequantize(parts, size)
                products = (rows @ rows.T).to(home)
                sums[mesh] = sums[mesh] + products if mesh in sums else products
            self._gram = all_reduce_sums(sums)
        return self._gram

    def add_combination(self, vector: Sequence[Tensor], weights: Mapping[str, float]) -> Vector:
        """vector + Σ weights[name] · stacked vector, as new tensors in the vector's own precision.

        Of sharded vectors this rank's part.
        """
        factors = torch.tensor([weights.get(name, 0.0) for name in self.names])
        found: Vector = []
        for rows, chunk, size in zip(self._rows, self.chunks, self._sizes, strict=True):
            wide = dequantize(rows, size)
            added = torch.mv(wide.T, factors.to(wide))
            shapes = [to_local(part).shape for part in vector[chunk]]
            parts = added.split([shape.numel() for shape in shapes])
            for own, part, shape in zip(vector[chunk], parts, shapes, strict=True):
                base = to_local(own)
                found.append((upcast(base) + part.view(shape)).to(base.dtype))
        return found

    def vector(self, name: str, like: Sequence[Tensor]) -> Vector:
        """One of the stacked vectors, in the shapes of `like`; of sharded ones this rank's part."""
        row = self.names.index(name)
        found: Vector = []
        for rows, chunk, size in zip(self._rows, self.chunks, self._sizes, strict=True):
            shapes = [to_local(part).shape for part in like[chunk]]
            own = dequantize([part[row : row + 1] for part in rows], size)[0]
            parts = own.split([shape.numel() for shape in shapes])
            found += [one.view(shape) for one, shape in zip(parts, shapes, strict=True)]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Names, norms and rows, those of this rank where parameters are sharded."""
        return {"names": self.names, "norms": self.norms, "rows": self._rows}

    @classmethod
    def from_state(cls, state: dict[str, Any], like: Sequence[Tensor]) -> VectorStack:
        """The stack that `state_dict` gave, over the parameters `like`.

        Raises:
            ValueError: the parameters have other shapes than those of the state.
        """
        stack = cls({})
        stack.names, stack.norms = list(state["names"]), dict(state["norms"])
        stack._build_layout(like if stack.names else [])
        found = [[tuple(part.shape) for part in parts] for parts in state["rows"]]
        plain = [[(len(stack.names), size)] for size in stack._sizes]
        blocks = [(len(stack.names), -(-size // BLOCK_SIZE)) for size in stack._sizes]
        if found not in (plain, [[(*block, BLOCK_SIZE), (*block, 1)] for block in blocks]):
            raise ValueError("the trained parameters have other shapes than those of the state")
        stack._rows = [
            [part.to(to_local(like[chunk.start]).device) for part in parts]
            for parts, chunk in zip(state["rows"], stack.chunks, strict=True)
        ]
        return stack


def quantize(rows: Tensor, storage: str) -> list[Tensor]:
    """Rows of shape (n, elements) as they are kept; see `Stack`."""
    if storage == "float32":
        return [rows]
    if storage == "bfloat16":
        return [rows.bfloat16()]
    spare = -rows.shape[1] % BLOCK_SIZE
    blocks = torch.nn.functional.pad(rows, (0, spare)).unflatten(1, (-1, BLOCK_SIZE))
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    codes = (blocks / scales.clamp_min(torch.finfo(rows.dtype).tiny)).round().to(torch.int8)
    return [codes, scales]


def dequantize(parts: Sequence[Tensor], size: int) -> Tensor:
    """What `packed` kept of rows of `size` elements, shape (n, size), in at least float32."""
    if len(parts) == 1:
        return upcast(parts[0])
    codes, scales = parts
    return (codes * scales).flatten(1)[:, :size]
