"""Vectors in parameter space, also for parameters sharded over ranks (FSDP2's DTensors).

- `Vector`: a list of tensors, one for each parameter; `dot`, `norm`, `add`, … work on it.
  `Differences`: the difference of two, computed tensor by tensor.
- `VectorStack`: several vectors, with the inner products with all of them in one pass;
  `FlatVector`: a vector prepared for several such passes.
- `upcast`, `to_local`, `as_sharded`: precision and shards of single tensors and vectors.
"""

from riprap.linalg._param_vectors import (
    Differences,
    Vector,
    add,
    as_sharded,
    clone,
    copy_into,
    cosine,
    densify,
    dot,
    inner_products,
    is_sharded,
    norm,
    row_products,
    row_squares,
    subtract,
    sum_vectors,
    to_float64,
    to_local,
    upcast,
    upcast_vector,
)
from riprap.linalg._vector_stack import STORAGE_DTYPES, FlatVector, VectorStack, make_chunks

__all__ = [
    "STORAGE_DTYPES",
    "Differences",
    "FlatVector",
    "Vector",
    "VectorStack",
    "add",
    "as_sharded",
    "clone",
    "copy_into",
    "cosine",
    "densify",
    "dot",
    "inner_products",
    "is_sharded",
    "make_chunks",
    "norm",
    "row_products",
    "row_squares",
    "subtract",
    "sum_vectors",
    "to_float64",
    "to_local",
    "upcast",
    "upcast_vector",
]
