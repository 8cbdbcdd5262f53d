"""The selector: a strategy, a ratio, and what was taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from riprap._distributed import rank
from riprap.behaviors import Behavior
from riprap.errors import ConfigError
from riprap.linalg import Vector
from riprap.selection._loop_hooks import Attachment
from riprap.selection._row_losses import Losses
from riprap.selection._scores import Array, Scores
from riprap.selection.strategies import Strategy, strategy_of


@dataclass(frozen=True)
class Taken:
    """What was taken of one batch of the optimizer.

    Attributes:
        step: the optimizer's step that learns from it, from 1.
        rows: indices in the batch (micro-batches one after another, then ranks), or row ids.
        of: how many rows there were.
        strategy, ratio: what chose, and the share it was to take.
        numbers: of the rows taken, what the choice went by, in their order.
        detail: why nothing was chosen where all rows were taken; else empty.
    """

    step: int
    rows: list[Any]
    of: int
    strategy: str
    ratio: float
    numbers: dict[str, list[float]] = field(default_factory=dict)
    detail: str = ""


class Selector:
    """Chooses the samples of each batch that are learned from.

    Args:
        strategy: a name (random, low, moderate, moderate_by_loss, high, proxy, least_harm, taylor,
            risk, adaptive) or a strategy.
        ratio: the share of the optimizer's batch that is taken, rounded down, at least one row.
        behaviors: what least_harm and adaptive protect.
        directions: vectors over the trainable parameters by name: "danger" and "safety" for risk,
            "validation" (a gradient) for taylor.
        refresh: steps between two visits to the probes of `behaviors`.
        row_id: the column of a batch that names its rows; it is taken out before the model sees it.
        log: a JSON-lines file that is written what was taken, by rank 0; or a function that is told
            it by name: `lambda **taken: monitor.note("selection", **taken)` puts it into a record.
        seed: of the choices made at random.

    Attributes:
        taken: what was taken, step by step.
        step: steps that the optimizer took while attached.

    Raises:
        ConfigError: an unknown strategy, or a ratio outside (0, 1].
    """

    def __init__(
        self,
        strategy: str | Strategy = "moderate",
        ratio: float = 0.2,
        *,
        behaviors: Sequence[Behavior] = (),
        directions: Mapping[str, Vector] | None = None,
        refresh: int = 10,
        row_id: str | None = None,
        log: str | Path | Callable[..., None] | None = None,
        seed: int = 0,
    ) -> None:
        self.strategy = strategy_of(strategy)
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratio={ratio}: the share to take lies above 0 and at most at 1")
        if refresh < 1:
            raise ConfigError(f"refresh={refresh}: at least 1 step")
        self.ratio, self.behaviors, self.refresh = ratio, list(behaviors), refresh
        self.directions = dict(directions or {})
        self.row_id, self.log = row_id, Path(log) if isinstance(log, str) else log
        self.taken: list[Taken] = []
        self.step = 0
        self._noise = np.random.default_rng(seed)
        self._attachment: Attachment | None = None

    def choose(self, scores: Scores) -> Array:
        """Indices of the samples that the strategy takes of `scores`, sorted.

        Samples without response tokens are never among them.
        """
        usable = scores.usable()
        if len(usable) == 0:
            return usable
        own = scores.only(usable)
        share = self.strategy.share(own, self.ratio)
        count = max(1, int(share * len(usable) + 1e-9))
        if count >= len(usable):
            return np.arange(len(scores))
        return np.sort(usable[self.strategy.choose(own, count, self._noise)])

    def decide(self, scores: Scores, ids: list[Any]) -> Array:
        """`choose`, noted in `taken`; all rows where numbers are not finite."""
        detail = ""
        if not scores.finite():
            detail = "numbers are not finite (an overflow, or a loss that diverged)"
        elif not len(scores.usable()):
            detail = "no row has response tokens and a weight in the loss"
        rows = np.arange(len(scores)) if detail else self.choose(scores)
        drift = scores.given("drift") if "drift" in self.strategy.reads else None
        ratio = self.ratio if drift is None else self.strategy.share(scores, self.ratio)
        numbers = _numbers(scores.only(rows))
        named = [ids[row] for row in rows.tolist()]
        one = Taken(self.step + 1, named, len(ids), self.strategy.name, ratio, numbers, detail)
        self.taken.append(one)
        if isinstance(self.log, Path) and rank() == 0:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one)) + "\n")
        elif callable(self.log):
            self.log(**asdict(one))
        return rows

    def begin(
        self, model: nn.Module, optimizer: Any, accumulate: int = 1, losses: Losses | None = None
    ) -> Attachment:
        """As `attach`, until `end`."""
        self.end()
        reads = self.strategy.reads
        if reads & {"harm", "drift"} and not self.behaviors:
            raise ConfigError(f"{self.strategy.name} needs behaviours: give behaviors=[...]")
        missing = (reads & {"danger", "safety"}) - set(self.directions)
        if missing:
            raise ConfigError(
                f"{self.strategy.name} needs directions: give directions={{{sorted(missing)[0]!r}: "
                "..., a vector over the trainable parameters}"
            )
        self._attachment = Attachment(self, model, optimizer, accumulate, losses)
        return self._attachment

    def end(self) -> None:
        """Take the selector off."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    @contextmanager
    def attach(
        self, model: nn.Module, optimizer: Any, accumulate: int = 1, losses: Losses | None = None
    ) -> Iterator[Attachment]:
        """Inside, each step of `optimizer` learns from the chosen rows alone.

        Args:
            accumulate: backward passes before each step; rows are chosen over all of them, at the
                last one.
            losses: (output, inputs by name) -> each row's own loss, shape (rows,), where the model
                is not given `labels`.

        Raises:
            ConfigError: a trainable parameter's gradient cannot be taken sample by sample (it is
                named), the model is compiled or sharded, or behaviours or directions that the
                strategy needs are not there.
        """
        attachment = self.begin(model, optimizer, accumulate, losses)
        try:
            yield attachment
        finally:
            self.end()


def _numbers(scores: Scores) -> dict[str, list[float]]:
    every = {"loss": scores.loss, "norm": scores.norm, "proxy": scores.proxy}
    every |= {f"harm/{name}": values for name, values in scores.harm.items()} | scores.along
    return {name: values.tolist() for name, values in every.items() if values is not None}
