"""Probes in chunks: one forward pass computes as many tokens as the budget allows.

The margins of a chunk are those of the same probes in a larger batch, to within rounding; gradients
of sums add up. Only margins that say so (`MarginFunction.separable`) are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from riprap._distributed import has_sharded_parameters
from riprap.behaviors import Behavior, ProbeSet, count_tokens
from riprap.evaluation._token_budget import is_out_of_memory, note_memory_limit, token_budget

_SELECTED: WeakKeyDictionary[Behavior, tuple[Any, dict[tuple[int, ...], ProbeSet]]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True)
class Part:
    """Some probes of a behavior, or all of them.

    Attributes:
        whole: the behavior.
        indices: the probes; None: all of them, in their order.
    """

    whole: Behavior
    indices: tuple[int, ...] | None = None

    def behavior(self) -> Behavior:
        """Return the behavior on these probes."""
        whole, indices = self.whole, self.indices
        if indices is None:
            return whole
        probes, parts = _SELECTED.get(whole, (None, {}))
        if probes is not whole.probes:
            parts = {}
            _SELECTED[whole] = whole.probes, parts
        if indices not in parts:
            parts[indices] = whole.probes.select(list(indices))
        return Behavior(whole.name, parts[indices], whole.margins.select(indices), whole.floor)


@dataclass(frozen=True)
class Chunk:
    """Probes of one or several behaviors that are computed in one forward pass.

    Attributes:
        parts: at most one of each behavior.
        tokens: number of tokens that the pass computes, padding included.
        n_cuttable: number of probes that could also be computed in other chunks.
    """

    parts: list[Part]
    tokens: int = 0
    n_cuttable: int = 0


@dataclass
class _Builder:
    """Chunks that grow probe by probe, until they hold as many tokens as allowed."""

    behaviors: Sequence[Behavior]
    n_common: int
    max_tokens: int
    chunks: list[Chunk] = field(default_factory=list)
    indices: dict[int, list[int] | None] = field(default_factory=dict)
    n_rows: int = 0
    width: int = 0
    n_cuttable: int = 0

    def add(self, behavior: int, index: int | None, n_rows: int, width: int) -> None:
        """Add a probe, or with None a whole behavior."""
        if self.indices and self._tokens(n_rows, width) > self.max_tokens:
            self.close()
        own = self.indices.setdefault(behavior, None if index is None else [])
        if own is not None and index is not None:
            own.append(index)
            self.n_cuttable += 1
        self.n_rows, self.width = self.n_rows + n_rows, max(self.width, width)

    def _tokens(self, n_rows: int = 0, width: int = 0) -> int:
        return self.n_common + (self.n_rows + n_rows) * max(self.width, width)

    def close(self) -> None:
        """End a chunk."""
        if not self.indices:
            return
        parts = [Part(self.behaviors[b], self._all_or(b)) for b in sorted(self.indices)]
        self.chunks.append(Chunk(parts, self._tokens(), self.n_cuttable))
        self.indices, self.n_rows, self.width, self.n_cuttable = {}, 0, 0, 0

    def _all_or(self, behavior: int) -> tuple[int, ...] | None:
        """Return the indices; None if they are all probes, which then keep their order."""
        own = self.indices[behavior]
        if own is None or len(own) == len(self.behaviors[behavior].probes):
            return None
        return tuple(own)


def cut_into_chunks(
    behaviors: Sequence[Behavior],
    model: nn.Module,
    max_tokens: int,
    chosen: Sequence[Part] = (),
) -> list[Chunk]:
    """Cut the probes of behaviors that share a pass into chunks, short probes first.

    Args:
        max_tokens: number of tokens of a chunk; a chunk with one probe may have more.
        chosen: only these parts of the behaviors; empty: all probes.
    """
    n_common, counts = count_tokens(behaviors, model)
    builder = _Builder(behaviors, n_common, max_tokens)
    only = {id(part.whole): part.indices for part in chosen}
    probes: list[tuple[int, int, int, int]] = []
    for at, (behavior, (n_rows, lengths)) in enumerate(zip(behaviors, counts, strict=True)):
        if can_be_cut(behavior) and lengths:
            indices = only.get(id(behavior))
            every = range(len(lengths)) if indices is None else indices
            probes += [(lengths[i], at, i, n_rows) for i in every]
        else:
            builder.add(at, None, n_rows * len(lengths), max(lengths, default=0))
    for length, at, index, n_rows in sorted(probes):
        builder.add(at, index, n_rows, length)
    builder.close()
    return builder.chunks


def can_be_cut(behavior: Behavior) -> bool:
    """Return whether parts of the probes have the margins that they have together."""
    separable = vars(type(behavior.margins)).get("separable", False)
    return bool(separable) and isinstance(behavior.probes, ProbeSet)


def run_in_chunks(
    behaviors: Sequence[Behavior],
    model: nn.Module,
    gradients: bool,
    run: Callable[[Chunk], None],
) -> None:
    """Run a pass over the probes chunk by chunk; one that does not fit into memory is cut again.

    Args:
        gradients: whether `run` computes gradients.
        run: the pass over one chunk. It must not keep anything of a chunk that fails.

    Raises:
        RuntimeError: there is not enough memory for a single probe; or whatever `run` raises.
    """
    pending = cut_into_chunks(behaviors, model, token_budget(model, gradients))[::-1]
    while pending:
        chunk = pending.pop()
        try:
            run(chunk)
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error) or not can_be_halved(chunk, model):
                raise
        # Outside of `except`, where the error no longer holds the graph.
        note_memory_limit(model, gradients, chunk.tokens // 2)
        whole = [part.whole for part in chunk.parts]
        pending += cut_into_chunks(whole, model, chunk.tokens // 2, chunk.parts)[::-1]


def can_be_halved(chunk: Chunk, model: nn.Module) -> bool:
    """Return whether less memory is needed for a part of a chunk, and no other rank waits."""
    return chunk.n_cuttable > 1 and not has_sharded_parameters(model)
