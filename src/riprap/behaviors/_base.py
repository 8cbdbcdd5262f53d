"""Base classes: what a margin function and a probe set may offer to the rest of the library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

from torch import Tensor, nn

from riprap.behaviors._margin_formulas import Margins

LossFunction = Callable[[nn.Module, Any], Tensor]  # shape (n_probes,)


class ProbeSet(ABC):
    """Probes that can be selected by index.

    Probes need not derive from this class: a plain margin function accepts any object. Deriving
    from it makes `Behavior.subset` and `Behavior.split` possible.
    """

    @property
    def max_length(self) -> int | None:
        """Length of the longest sequence, in tokens; None for probes without token ids."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def select(self, indices: list[int]) -> Self:
        """Return the probes at `indices`."""

    def rows(self) -> list[list[int]] | None:
        """Return the token ids of each probe's prompt; None for probes without token ids.

        They show whether a probe is also a training example.
        """
        return None

    def sequences(self) -> list[list[int]] | None:
        """Return the token ids of all rows that a pass computes, equally many for each probe."""
        return self.rows()


class MarginFunction(ABC):
    """Base class of margins, with their losses, calibration and state.

    `Behavior` wraps a plain function `(model, probes) -> margins` in `PlainMargin`. Derive from
    this class to offer more than the margins; only `__call__` is required.

    Attributes:
        unit: unit of the margins.
        losses: `losses(model, probes)`, the protected loss of each probe, shape (n_probes,);
            None for a margin without losses.
        targets: the correct next token of each probe, shape (n_probes,); None where the margin is
            not defined by one token.
        separable: whether each margin and loss depends on its own probe only, so that `select` and
            a part of the probes give the same ones. Large probe sets are then evaluated in parts
            that fit into memory. Not inherited: each class states it for itself.
    """

    unit: str = "margin"
    losses: LossFunction | None = None
    targets: Tensor | None = None
    separable: bool = False

    @abstractmethod
    def __call__(self, model: nn.Module, probes: Any) -> Tensor | Margins:
        """Return the margins, shape (n_probes,), attached to the graph."""

    @property
    def is_calibrated(self) -> bool:
        """Return whether the margin can be computed without calling `calibrate` first."""
        return True

    def calibrate(self, model: nn.Module, probes: Any) -> None:  # noqa: B027 most need nothing
        """Store what later margins are compared with. Called once, before training."""

    def select(self, indices: Sequence[int]) -> MarginFunction:
        """Return the margin function for the probes at `indices`."""
        return self

    def insufficiency(self, evidence: Tensor) -> str:
        """Return why margins with this evidence do not measure the behavior; "" where they do.

        Args:
            evidence: `Margins.evidence` of all probes.
        """
        return ""

    def answer_logits(self, model: nn.Module, probes: Any) -> Tensor | None:
        """Return the logits that the answers are read from, shape (positions, vocabulary).

        None where the margin does not know its answers' positions.
        """
        return None

    def answer_weights(self, probes: Any) -> Tensor | None:
        """Return the weight of each row of `answer_logits`, float64, sum 1; None: all equal."""
        return None

    def answer_tokens(self, probes: Any) -> list[int]:
        """Return the distinct first tokens of the correct answers, sorted; empty if unknown."""
        return []

    def state_dict(self) -> dict[str, Any] | None:
        """Return what `calibrate` stored; None where it cannot be saved."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: the state does not fit this margin.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got {', '.join(state)}")


class PlainMargin(MarginFunction):
    """A plain function as a margin.

    Args:
        function: `function(model, probes)` returns margins of shape (n_probes,).
        losses: as `MarginFunction.losses`.
        calibrate: called as `calibrate(model, probes)` once before training.
    """

    def __init__(
        self,
        function: Callable[[nn.Module, Any], Tensor | Margins],
        losses: LossFunction | None = None,
        calibrate: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self.function, self.losses, self._calibrate = function, losses, calibrate

    def __call__(self, model: nn.Module, probes: Any) -> Tensor | Margins:
        return self.function(model, probes)

    def calibrate(self, model: nn.Module, probes: Any) -> None:
        if self._calibrate is not None:
            self._calibrate(model, probes)

    def state_dict(self) -> dict[str, Any] | None:
        """Return None if a `calibrate` function was given: what it stored is unknown."""
        return {} if self._calibrate is None else None
