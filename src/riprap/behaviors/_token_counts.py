"""Numbers of tokens that a pass over probes computes, before the pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from riprap.behaviors._base import ProbeSet
from riprap.behaviors._behavior import Behavior
from riprap.behaviors._last_logits import can_share_prefixes
from riprap.behaviors._margin_fns import LastLogitsMargin
from riprap.behaviors._model_io import accepted_arguments
from riprap.behaviors._prefix_cache import MIN_SHARED_TOKENS, common_prefix_length


@dataclass(frozen=True)
class ProbeLengths:
    """Lengths of a behavior's probes.

    Attributes:
        probes: the probes.
        lengths: of each probe the length of its longest row, in tokens.
        n_rows: number of rows of each probe.
        common: token ids with which all rows begin, without the last token of any.
    """

    probes: Any
    lengths: tuple[int, ...]
    n_rows: int
    common: tuple[int, ...]


_KNOWN: WeakKeyDictionary[Behavior, ProbeLengths] = WeakKeyDictionary()


def probe_lengths(behavior: Behavior) -> ProbeLengths | None:
    """Return the lengths of a behavior's probes; None for probes that are not a `ProbeSet`."""
    probes = behavior.probes
    if not isinstance(probes, ProbeSet):
        return None
    known = _KNOWN.get(behavior)
    if known is None or known.probes is not probes:
        known = _KNOWN[behavior] = _measure(probes)
    return known


def _measure(probes: ProbeSet) -> ProbeLengths:
    n, rows = len(probes), probes.sequences()
    if not rows or len(rows) % n:
        return ProbeLengths(probes, (probes.max_length or 1,) * n, 1, ())
    n_rows, sizes = len(rows) // n, [len(row) for row in rows]
    lengths = tuple(max(sizes[at : at + n_rows]) for at in range(0, len(rows), n_rows))
    n_common = common_prefix_length(rows, [size - 1 for size in sizes])
    return ProbeLengths(probes, lengths, n_rows, tuple(rows[0][:n_common]))


def shared_start(behavior: Behavior) -> tuple[int, ...]:
    """Return the first tokens with which all probes begin; empty if these are too few to share."""
    own = probe_lengths(behavior)
    common = () if own is None else own.common
    return common[:MIN_SHARED_TOKENS] if len(common) >= MIN_SHARED_TOKENS else ()


def count_tokens(
    behaviors: Sequence[Behavior], model: nn.Module
) -> tuple[int, list[tuple[int, list[int]]]]:
    """Count the tokens of a pass over the probes of one behavior, or of several that share it.

    Returns:
        (number of tokens that are computed once for all probes; for each behavior the number of
        rows of each probe, and the tokens of each probe's longest row without the shared ones).
        Behaviors without a `ProbeSet` have no probes here.
    """
    arguments = accepted_arguments(model)
    shares = can_share_prefixes(model, arguments)
    found = [probe_lengths(behavior) for behavior in behaviors]
    prefixes = [own.common for own in found if own is not None]
    n_common = common_prefix_length(prefixes, list(map(len, prefixes))) if prefixes else 0
    if not shares or n_common < MIN_SHARED_TOKENS:
        n_common = 0
    counts: list[tuple[int, list[int]]] = []
    for behavior, own in zip(behaviors, found, strict=True):
        if own is None:
            counts.append((1, []))
            continue
        margins = behavior.margins
        branches = len(margins.branches) if isinstance(margins, LastLogitsMargin) else 0
        packed = branches if shares else 0  # in the prompt's row, or in rows of their own
        n_rows = own.n_rows if shares else own.n_rows * (1 + branches)
        counts.append((n_rows, [length - n_common + packed for length in own.lengths]))
    return n_common, counts
