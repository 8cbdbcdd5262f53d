"""What a strategy decides on: a few small arrays, one number a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from riprap.errors import ConfigError

Array = np.ndarray
ASKED_FOR = {
    "norm": "per-sample gradient norms",
    "proxy": "errors at the last hidden state",
    "gram": "inner products between per-sample gradients",
    "harm": "behaviours: give Selector(behaviors=[...])",
    "drift": "behaviours: give Selector(behaviors=[...])",
    "danger": "a direction: give Selector(directions={'danger': ..., 'safety': ...})",
    "safety": "a direction: give Selector(directions={'danger': ..., 'safety': ...})",
}


@dataclass
class Scores:
    """Numbers of n samples. Those that no strategy asked for are None or missing.

    Attributes:
        loss: mean loss over each sample's own response tokens, shape (n,).
        tokens: response tokens, shape (n,).
        norm: L2 norm of the gradient of that loss over the trainable parameters, shape (n,).
        proxy: norm of the error at the last hidden state, shape (n,).
        harm: by behaviour, −⟨h_b, Δθ_i⟩: how far the sample's own update is predicted to push the
            mean margin down, shape (n,).
        along: by direction, ⟨direction, Δθ_i⟩, shape (n,).
        gram: ⟨∇L_i, ∇L_j⟩, shape (n, n).
        rate: the optimizer's learning rate.
        drift: share of the margin that is spent, of the behaviour that has lost most, in [0, 1].
        moves: ⟨Δθ_i, Δθ_j⟩, shape (n, n).
    """

    loss: Array
    tokens: Array
    norm: Array | None = None
    proxy: Array | None = None
    harm: dict[str, Array] = field(default_factory=dict)
    along: dict[str, Array] = field(default_factory=dict)
    gram: Array | None = None
    rate: float = 1.0
    drift: float | None = None
    moves: Array | None = None

    def __len__(self) -> int:
        return len(self.loss)

    def given(self, name: str) -> Array:
        """The numbers by that name.

        Raises:
            ConfigError: they are not there.
        """
        if name == "harm":  # with several behaviours the worst one counts
            found = np.max(list(self.harm.values()), axis=0) if self.harm else None
        else:
            found = self.along.get(name) if name in self.along else getattr(self, name, None)
        if found is None:
            raise ConfigError(f"the strategy needs {ASKED_FOR.get(name, name)}")
        return np.asarray(found)

    def only(self, rows: Array | Sequence[int]) -> Scores:
        """The same numbers for some of the samples."""
        at = np.asarray(rows, dtype=int)
        return Scores(
            self.loss[at],
            self.tokens[at],
            None if self.norm is None else self.norm[at],
            None if self.proxy is None else self.proxy[at],
            {name: values[at] for name, values in self.harm.items()},
            {name: values[at] for name, values in self.along.items()},
            None if self.gram is None else self.gram[np.ix_(at, at)],
            self.rate,
            self.drift,
            None if self.moves is None else self.moves[np.ix_(at, at)],
        )

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Several batches one after another; products between batches are not known."""

        def both(name: str) -> Array | None:
            found = [getattr(part, name) for part in parts]
            return None if any(one is None for one in found) else np.concatenate(found)

        def named(name: str) -> dict[str, Array]:
            keys = getattr(parts[0], name)
            return {key: np.concatenate([getattr(p, name)[key] for p in parts]) for key in keys}

        return cls(
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            both("norm"),
            both("proxy"),
            named("harm"),
            named("along"),
            parts[0].gram if len(parts) == 1 else None,
            parts[0].rate,
            parts[0].drift,
            parts[0].moves if len(parts) == 1 else None,
        )

    def usable(self) -> Array:
        """Indices of the samples that have response tokens, so that there is something to learn."""
        return np.flatnonzero(self.tokens > 0)

    def finite(self) -> bool:
        """Whether every number of the usable samples is finite."""
        own = self.only(self.usable())
        every = [own.loss, own.norm, own.proxy, own.gram, own.moves]
        every += [*own.harm.values(), *own.along.values()]
        return all(bool(np.isfinite(values).all()) for values in every if values is not None)
