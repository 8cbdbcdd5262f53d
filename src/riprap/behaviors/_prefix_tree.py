"""Trees of response prefixes, and margins and losses of the responses that begin with one.

A model's greedy response begins with a prefix exactly if, from the first position on, the largest
logit is that of the prefix's next token. Prefixes that begin alike share nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Row = tuple[int, ...]


@dataclass(frozen=True)
class PrefixTree:
    """Positions in a response at which its prefixes are told from other responses.

    Attributes:
        nodes: the tokens before each position, parents first; the first is (), the response's
            first position.
        children: for each node, the node that follows each token of a prefix; None where the
            prefix is complete.
    """

    nodes: tuple[Row, ...]
    children: tuple[dict[int, int | None], ...]

    @classmethod
    def build(cls, prefixes: Sequence[Row]) -> PrefixTree:
        """Combine prefixes; one that begins with another adds nothing."""
        nodes: list[Row] = [()]
        children: list[dict[int, int | None]] = [{}]
        for prefix in sorted(set(prefixes), key=lambda row: (len(row), row)):
            at = 0
            for depth, token in enumerate(prefix):
                own = children[at]
                if token not in own:
                    is_last = depth + 1 == len(prefix)
                    own[token] = None if is_last else len(nodes)
                    if not is_last:
                        nodes.append(prefix[: depth + 1])
                        children.append({})
                child = own[token]
                if child is None:
                    break
                at = child
        return cls(tuple(nodes), tuple(children))

    @property
    def branches(self) -> tuple[Row, ...]:
        """The nodes after the first position."""
        return self.nodes[1:]

    def margins(self, logits: Tensor) -> Tensor:
        """Return the margin of beginning with a prefix, shape (n,).

        From logits of shape (n, nodes, vocabulary). Above 0 exactly where greedy decoding produces
        a prefix. The size is the smallest change of logits, summed along the response, after which
        it would not, or would. With prefixes of one token: the largest of their logits − the
        largest other logit.
        """

        def combine(own: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
            at_children = own[:, tokens]
            others = own.index_fill(-1, tokens, float("-inf"))
            failing = torch.cat([others, at_children - values.relu()], -1)
            passing = at_children - (-values).relu()
            return passing.amax(-1) - failing.amax(-1)

        return self._fold(logits, combine, float("inf"))

    def losses(self, logits: Tensor, avoid: bool) -> Tensor:
        """Return −log P(the response begins with a prefix), or with none if `avoid`; shape (n,).

        From logits of shape (n, nodes, vocabulary).
        """

        def combine(own: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
            log_probs = own.log_softmax(-1)
            terms = log_probs[:, tokens] + values
            if avoid:
                others = log_probs.index_fill(-1, tokens, float("-inf"))
                terms = torch.cat([others, terms], -1)
            return terms.logsumexp(-1)

        return -self._fold(logits, combine, float("-inf") if avoid else 0.0)

    def follow(self, tokens: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return how each greedy response begins, from its most likely token at each node.

        Up to the end of a prefix, or to the first token that is on no prefix.
        """
        found: list[list[int]] = []
        for own in tokens:
            at: int | None = 0
            found.append([])
            while at is not None:
                found[-1].append(own[at])
                at = self.children[at].get(own[at])
        return found

    def _fold(
        self, logits: Tensor, combine: Callable[[Tensor, Tensor, Tensor], Tensor], complete: float
    ) -> Tensor:
        """Combine each node's logits with the values of its children, from the last node on."""
        values: dict[int, Tensor] = {}
        end = logits.new_full((len(logits),), complete)
        for index in reversed(range(len(self.nodes))):
            own = self.children[index]
            tokens = torch.tensor(list(own), device=logits.device)
            below = [end if child is None else values[child] for child in own.values()]
            values[index] = combine(logits[:, index], tokens, torch.stack(below, -1))
        return values[0]


def pack_branches(
    ids: Tensor, mask: Tensor, branches: Sequence[Row], n_before: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Write each prompt and all branches after it into one row, so that one pass computes them.

    The branches stand before the prompt's last token, so that a row still ends with it; positions
    and attention say what follows what.

    Args:
        ids, mask: left-padded prompts, without what was computed before; shape (n, T).
        branches: a tree's nodes without the first one.
        n_before: number of tokens that were computed before, the same ones for all rows.

    Returns:
        (token ids, shape (n, T + branches); position ids, same shape; what each token attends to,
        bool, shape (n, 1, T + branches, n_before + T + branches)).
    """
    n, width = ids.shape
    last = torch.tensor([branch[-1] for branch in branches], device=ids.device)
    depth = torch.tensor([len(branch) for branch in branches], device=ids.device)
    own = mask.cumsum(1) + n_before - 1
    after = own[:, -1:] + depth

    def insert(prompts: Tensor, between: Tensor) -> Tensor:
        return torch.cat([prompts[:, :-1], between, prompts[:, -1:]], 1)

    total, first = width + len(branches), width - 1
    order = insert(torch.arange(width)[None], torch.full((1, len(branches)), width))[0]
    sees = order[:, None] >= order  # the branches see every token of the prompt, not the reverse
    sees[first:-1, first:-1] = torch.tensor(
        [[one[: len(other)] == other for other in branches] for one in branches]
    )
    real = insert(mask.bool(), mask.new_ones(n, len(branches)).bool())
    # Padding attends to itself: a softmax over nothing would be NaN.
    attends = sees.to(ids.device) & real[:, None] | torch.eye(total, device=ids.device).bool()
    before = attends.new_ones(n, total, n_before)
    attends = torch.cat([before, attends], -1)[:, None]
    return insert(ids, last.expand(n, -1)), insert(own, after).clamp(min=0), attends


def root_first(logits: Tensor) -> Tensor:
    """Return the logits at the last positions of packed rows in the order of the tree's nodes."""
    return torch.cat([logits[:, -1:], logits[:, :-1]], 1)
