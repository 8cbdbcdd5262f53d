"""Scores: the small arrays on which a strategy decides, one number a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from riprap.errors import ConfigError

Array = np.ndarray
_BEHAVIORS = "behaviors: give Selector(behaviors=[...])"
_DIRECTION = "a direction: give Selector(directions={'danger': ..., 'safety': ...})"
_DESCRIPTIONS = {
    "norm": "per-sample gradient norms",
    "proxy": "errors at the last hidden state",
    "gram": "inner products between per-sample gradients",
    "category": "categories: give Selector(row_id=..., categories={id: category})",
    "harm": _BEHAVIORS,
    "margin_spent": _BEHAVIORS,
    "danger": _DIRECTION,
    "safety": _DIRECTION,
}


@dataclass
class Scores:
    """Scores of n samples. Scores that the strategy does not need are None or missing.

    Attributes:
        loss: mean loss over each sample's own response tokens, shape (n,).
        tokens: response tokens, shape (n,).
        norm: L2 norm of the gradient of that loss over the trainable parameters, shape (n,).
        proxy: norm of the error at the last hidden state, shape (n,).
        harm: by behavior, −⟨h_b, Δθ_i⟩: the predicted fall of the mean margin by the sample's own
            update, shape (n,).
        directional: by direction, ⟨direction, Δθ_i⟩, shape (n,).
        gram: ⟨∇L_i, ∇L_j⟩, shape (n, n).
        lr: the optimizer's learning rate.
        margin_spent: fraction of its margin that the worst behavior has lost, in [0, 1].
        update_gram: ⟨Δθ_i, Δθ_j⟩, shape (n, n).
        measured: indices of the samples whose gradients were computed; None: all.
        category: category of each sample, shape (n,).
    """

    loss: Array
    tokens: Array
    norm: Array | None = None
    proxy: Array | None = None
    harm: dict[str, Array] = field(default_factory=dict)
    directional: dict[str, Array] = field(default_factory=dict)
    gram: Array | None = None
    lr: float = 1.0
    margin_spent: float | None = None
    update_gram: Array | None = None
    measured: Array | None = None
    category: Array | None = None

    def __repr__(self) -> str:
        names = [*self.by_name(), *(["gram"] if self.gram is not None else [])]
        return f"Scores({len(self)} samples: {', '.join(names)})"

    def __len__(self) -> int:
        return len(self.loss)

    def require(self, name: str) -> Array:
        """Return a score of each sample by its name, as in `Strategy.needs`.

        Raises:
            ConfigError: the score was not computed.
        """
        named = {"loss": self.loss, "norm": self.norm, "proxy": self.proxy, "gram": self.gram}
        named["category"] = self.category
        if name == "harm":  # with several behaviors, the worst one counts
            values = np.max(list(self.harm.values()), axis=0) if self.harm else None
        else:
            values = (named | self.directional).get(name)
        if values is None:
            raise ConfigError(f"the strategy needs {_DESCRIPTIONS.get(name, name)}")
        return np.asarray(values)

    def select(self, rows: Array | Sequence[int]) -> Scores:
        """Return the scores of some samples."""
        index = np.asarray(rows, dtype=int)

        def pick(values: Array | None) -> Array | None:
            if values is None:
                return None
            return values[index] if values.ndim == 1 else values[np.ix_(index, index)]

        return replace(
            self,
            loss=self.loss[index],
            tokens=self.tokens[index],
            norm=pick(self.norm),
            proxy=pick(self.proxy),
            harm={name: values[index] for name, values in self.harm.items()},
            directional={name: values[index] for name, values in self.directional.items()},
            gram=pick(self.gram),
            update_gram=pick(self.update_gram),
            category=pick(self.category),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Scores]) -> Scores:
        """Join the scores of several batches; inner products between batches are not known."""

        def join(arrays: list[Array | None]) -> Array | None:
            present = [array for array in arrays if array is not None]
            return np.concatenate(present) if len(present) == len(parts) else None

        def join_named(mappings: list[dict[str, Array]]) -> dict[str, Array]:
            return {n: np.concatenate([part[n] for part in mappings]) for n in mappings[0]}

        if len(parts) == 1:
            return replace(parts[0])
        return cls(
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            join([part.norm for part in parts]),
            join([part.proxy for part in parts]),
            join_named([part.harm for part in parts]),
            join_named([part.directional for part in parts]),
            lr=parts[0].lr,
            margin_spent=parts[0].margin_spent,
            category=join([part.category for part in parts]),
        )

    def usable(self) -> Array:
        """Return the indices of the samples that have response tokens."""
        return np.flatnonzero(self.tokens > 0)

    def by_name(self) -> dict[str, Array]:
        """Return the scores of shape (n,) by name, harm as `harm/<behavior>`."""
        named = {"loss": self.loss, "norm": self.norm, "proxy": self.proxy}
        named |= {f"harm/{name}": values for name, values in self.harm.items()} | self.directional
        return {name: values for name, values in named.items() if values is not None}

    def all_finite(self) -> bool:
        """Return whether every score of the usable and measured samples is finite."""
        rows = self.usable()
        usable = self.select(rows if self.measured is None else np.intersect1d(rows, self.measured))
        arrays = [*usable.by_name().values(), usable.gram, usable.update_gram]
        return all(bool(np.isfinite(values).all()) for values in arrays if values is not None)
