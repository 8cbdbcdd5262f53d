"""The selector: a strategy, a ratio, and a history of the selected rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from riprap._checks import CheckedCall, check_count, named
from riprap._distributed import rank
from riprap.behaviors import Behavior, require_behaviors
from riprap.errors import ConfigError
from riprap.linalg import Vector
from riprap.selection._loop_hooks import LoopAttachment
from riprap.selection._row_losses import RowLossFn
from riprap.selection._scores import Array, Scores
from riprap.selection.strategies import Strategy, get_strategy, own_candidates


@dataclass(frozen=True)
class SelectionRecord:
    """Rows selected from one batch of the optimizer.

    Attributes:
        step: the optimizer's step that learns from the rows, from 1.
        rows: indices in the batch (micro-batches one after another, then ranks), or row ids.
        batch_size: rows in the optimizer's batch.
        strategy, ratio: the strategy's name, and the fraction of the rows to select.
        scores: scores of the selected rows by name, in the order of `rows`.
        detail: reason why all rows were selected without a choice; else empty.
        by_id: whether `rows` are row ids.
    """

    step: int
    rows: list[Any]
    batch_size: int
    strategy: str
    ratio: float
    scores: dict[str, list[float]] = field(default_factory=dict)
    detail: str = ""
    by_id: bool = False

    def __repr__(self) -> str:
        chosen = f"{len(self.rows)} of {self.batch_size} rows by {self.strategy}"
        detail = f"; {self.detail}" if self.detail else ""
        return f"SelectionRecord(step {self.step}: {chosen}{detail})"


class Selector(metaclass=CheckedCall):
    """Row selection for a training loop: the optimizer learns from some rows of each batch.

    Args:
        strategy: a name (random, low, moderate, moderate_by_loss, high, proxy, least_harm, taylor,
            risk, adaptive, random_by_length, random_by_category) or a strategy. The last two are
            controls for another strategy: `random_by_length:high`; without one, for moderate.
        ratio: fraction of the optimizer's batch to select, rounded down, at least one row.
        behaviors: behaviors that least_harm and adaptive protect.
        directions: vectors over the trainable parameters by name: "danger" and "safety" for risk,
            "validation" (a gradient) for taylor.
        probe_every: steps between two evaluations of the probes of `behaviors`.
        row_id: column of a batch with the rows' ids; the model does not receive it.
        categories: category of each row by its id, for random_by_category.
        log: a JSON Lines file to which rank 0 appends each record; or a function that is called
            with the record's fields: `lambda **record: monitor.log_event("selection", **record)`
            writes it to a monitor's record.
        seed: seed of random choices.
        scale: "batch": the selected rows together have the weight of the whole batch in the loop's
            loss; "rows": each has its own. Where the loss is a mean over rows or tokens, "batch" is
            the step of a batch of just those rows, and "rows" is shorter by their share. Where the
            loss is a sum, "rows" is that step, and "batch" is n/k times as long.

    Attributes:
        history: the selected rows, step by step.
        step: steps of the optimizer while attached.

    Raises:
        ConfigError: an unknown strategy or scale, or a ratio outside (0, 1].
    """

    def __init__(
        self,
        strategy: str | Strategy = "moderate",
        ratio: float = 0.2,
        *,
        behaviors: Sequence[Behavior] = (),
        directions: Mapping[str, Vector] | None = None,
        probe_every: int = 10,
        row_id: str | None = None,
        categories: Mapping[Any, Any] | None = None,
        log: str | Path | Callable[..., None] | None = None,
        seed: int = 0,
        scale: str = "batch",
    ) -> None:
        self.strategy = get_strategy(strategy)
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratio={ratio}: give a number above 0 and at most 1")
        check_count("probe_every", probe_every)
        example = "Selector(..., behaviors=[{}])"
        behaviors = require_behaviors(behaviors, "nothing to protect", example) if behaviors else []
        if scale not in ("batch", "rows"):
            raise ConfigError(f"scale={scale!r}: choose 'batch' or 'rows'")
        self.scale = scale
        self.ratio, self.behaviors, self.probe_every = ratio, list(behaviors), probe_every
        self.directions = dict(directions or {})
        self.row_id, self.log = row_id, Path(log) if isinstance(log, str) else log
        self.categories = categories
        self.history: list[SelectionRecord] = []
        self.step = 0
        self._rng = np.random.default_rng(seed)
        self._attachment: LoopAttachment | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which is attached to nothing."""
        return self.__dict__ | {"_attachment": None}

    def __repr__(self) -> str:
        return f"Selector({self.strategy.label}, ratio={self.ratio}; {self.step} steps)"

    def choose(self, scores: Scores) -> Array:
        """Return the sorted indices of the samples that the strategy selects.

        Samples without response tokens are not selected, unless the ratio asks for all samples.
        """
        usable = scores.usable()
        if len(usable) == 0:
            return usable
        usable_scores = scores.select(usable)
        count = self._count(usable_scores)
        if count >= len(usable):
            return np.arange(len(scores))
        return np.sort(usable[self.strategy.choose(usable_scores, count, self._rng)])

    def candidates(self, scores: Scores) -> Array:
        """Return the indices of the samples of which `choose` reads more than losses and tokens."""
        usable = scores.usable()
        if np.isfinite(scores.loss).all() and self._count(scores.select(usable)) < len(usable):
            return usable[own_candidates(self.strategy, scores.select(usable))]
        return np.arange(len(scores))

    def _count(self, usable_scores: Scores) -> int:
        ratio = self.strategy.effective_ratio(usable_scores, self.ratio)
        return max(1, int(ratio * len(usable_scores) + 1e-9))

    def choose_and_record(self, scores: Scores, ids: list[Any]) -> Array:
        """Choose and append to `history`; choose all rows if a score is not finite."""
        detail = ""
        if self.categories is not None:
            scores = replace(scores, category=self._categories_of(ids))
        if not scores.all_finite():
            detail = "scores are not finite (an overflow, or a loss that diverged)"
        elif not len(scores.usable()):
            detail = "no row has response tokens and a weight in the loss"
        rows = np.arange(len(scores)) if detail else self.choose(scores)
        record = SelectionRecord(
            step=self.step + 1,
            rows=[ids[row] for row in rows.tolist()],
            batch_size=len(ids),
            strategy=self.strategy.label,
            ratio=self.strategy.effective_ratio(scores, self.ratio),
            scores={n: values.tolist() for n, values in scores.select(rows).by_name().items()},
            detail=detail,
            by_id=self.row_id is not None,
        )
        self.history.append(record)
        if isinstance(self.log, Path) and rank() == 0:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        elif callable(self.log):
            self.log(**asdict(record))
        return rows

    def _categories_of(self, ids: list[Any]) -> Array:
        assert self.categories is not None
        missing = [row for row in ids if row not in self.categories]
        if missing:
            raise ConfigError(
                f"categories has no category of row {missing[0]!r}: give one for each id in column "
                f"{self.row_id!r}"
            )
        return np.array([str(self.categories[row]) for row in ids])

    def begin(
        self, model: nn.Module, optimizer: Any, accumulate: int = 1, losses: RowLossFn | None = None
    ) -> LoopAttachment:
        """Attach the selector until `end`; see `attach`."""
        self.end()
        needs = self.strategy.all_needs
        if needs & {"harm", "margin_spent"} and not self.behaviors:
            raise ConfigError(f"{self.strategy.label} needs behaviors: give behaviors=[...]")
        if "category" in needs and (self.categories is None or self.row_id is None):
            raise ConfigError(
                f"{self.strategy.label} needs categories: give row_id=, the column of ids, and "
                "categories={id: category}"
            )
        missing = (needs & {"danger", "safety"}) - set(self.directions)
        if missing:
            raise ConfigError(
                f"{self.strategy.name} needs directions: give directions={{{sorted(missing)[0]!r}: "
                "..., a vector over the trainable parameters}"
            )
        self._attachment = LoopAttachment(self, model, optimizer, accumulate, losses)
        return self._attachment

    def end(self) -> None:
        """Detach the selector."""
        if self._attachment is not None:
            self._attachment.remove()
        self._attachment = None

    @named
    @contextmanager
    def attach(
        self, model: nn.Module, optimizer: Any, accumulate: int = 1, losses: RowLossFn | None = None
    ) -> Iterator[LoopAttachment]:
        """Make each step of `optimizer` inside the context learn from the selected rows only.

        Args:
            optimizer: an optimizer, or a list of optimizers that step one after another.
            accumulate: backward passes before each step. Rows are selected over all of them, at
                the last one.
            losses: (output, inputs by name) -> each row's own loss, shape (rows,), if the model
                is not given `labels`.

        Raises:
            ConfigError: a trainable parameter, which is named, lies in an unsupported layer, the
                model is compiled or sharded, the optimizer steps inside backward(), or behaviors
                or directions that the strategy needs are missing. At the first pass: a layer does
                not run on the rows of the batch, or rows are mixed.
        """
        attachment = self.begin(model, optimizer, accumulate, losses)
        try:
            yield attachment
        finally:
            self.end()
