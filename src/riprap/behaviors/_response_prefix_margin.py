"""Margin of beginning a response with one of some prefixes, told apart by all of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from riprap.behaviors._answers import Answers
from riprap.behaviors._margin_fns import LastLogitsMargin, check_vocabulary
from riprap.behaviors._model_io import TokenBatch
from riprap.behaviors._prefix_tree import PrefixTree, Row
from riprap.errors import BehaviorError


class ResponsePrefix(LastLogitsMargin):
    """Response prefix margin: above 0 exactly where greedy decoding begins with a prefix.

    See `PrefixTree.margins`. A prefix of one token is read at the first position of the response;
    others also after each of their tokens but the last.

    Args:
        prefixes: token ids with which responses that show the behavior begin; a number is a prefix
            of one token.
        avoid: flip the sign: above 0 where the response does not begin with a prefix.
        calibrator: `calibrator(model, probes)` finds the prefixes if none are given.
    """

    separable = True

    def __init__(
        self,
        prefixes: Sequence[int | Sequence[int]],
        avoid: bool,
        calibrator: Callable[[nn.Module, TokenBatch], Sequence[Row]] | None = None,
    ) -> None:
        self.sign = -1.0 if avoid else 1.0
        self.calibrator = calibrator
        self._set_prefixes(prefixes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.prefixes)} prefixes, avoid={self.sign < 0})"

    def _set_prefixes(self, prefixes: Sequence[int | Sequence[int]]) -> None:
        rows = {(p,) if isinstance(p, int) else tuple(p) for p in prefixes}
        self.prefixes: list[Row] = sorted(rows)
        self.tree = PrefixTree.build(self.prefixes)
        self.branches = self.tree.branches

    @property
    def is_calibrated(self) -> bool:
        return bool(self.prefixes)

    def calibrate(self, model: nn.Module, probes: TokenBatch) -> None:
        """Find the prefixes in the model's own responses, if none were given."""
        if self.calibrator is not None and not self.prefixes:
            self._set_prefixes(self.calibrator(model, probes))

    def state_dict(self) -> dict[str, Any]:
        return {"prefixes": [list(prefix) for prefix in self.prefixes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        given = list(state["prefixes"])
        rows = [[p] if type(p) is int else p for p in given]
        if not rows or not all(
            isinstance(row, (list, tuple)) and row and all(type(token) is int for token in row)
            for row in rows
        ):
            raise ValueError("prefixes must be lists of token ids, at least one")
        self._set_prefixes(rows)

    def select(self, indices: Sequence[int]) -> ResponsePrefix:
        return ResponsePrefix(self.prefixes, self.sign < 0, self.calibrator)

    def from_logits(self, logits: Tensor) -> Tensor:
        """Return the lead of beginning with a prefix (negated with `avoid`), shape (n,)."""
        return self.sign * self.tree.margins(self._by_node(logits))

    def answers(self, logits: Tensor) -> Answers:
        """Return the beginning of each response: along a prefix, and one token after it parts."""
        return self.tree.follow(self._by_node(logits).argmax(-1).tolist())

    def losses(self, model: nn.Module, probes: TokenBatch) -> Tensor:
        """Return −log P(the response begins with a prefix), or with none with `avoid`, in nats."""
        return self.tree.losses(self._by_node(self.read_logits(model, probes)), self.sign < 0)

    def _by_node(self, logits: Tensor) -> Tensor:
        if not self.prefixes:
            raise BehaviorError(
                "the response prefixes are not known; call `calibrate(model, probes)` first"
            )
        tokens = torch.tensor([token for prefix in self.prefixes for token in prefix])
        check_vocabulary("prefix", tokens, logits)
        return logits if self.branches else logits[:, None]
