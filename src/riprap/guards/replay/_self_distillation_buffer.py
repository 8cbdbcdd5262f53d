"""Spare examples of behaviours, learned again without labels: the start says what is right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap.behaviors import Behavior, LastLogitsMargin, TokenBatch, last_logits
from riprap.errors import ConfigError
from riprap.evaluation import loss_and_gradient, preserve_training_state
from riprap.guards._base import GuardView
from riprap.linalg import Vector


class SelfDistillationBuffer:
    """Examples of behaviours that are learned again, so that the model goes on as it started.

    What is learned is the starting model's own output on them: its logits after each probe, held
    by the divergence at a temperature (dark experience replay, Buzzega et al., 2004.07211, with
    the loss of Hinton et al., 1503.02531), or, for margins that are not read from one position's
    logits, its margins, by the square of what is missing. So no labels are needed, and an example
    says more than its one right answer.

    Args:
        behaviors: named like those that are watched, on **other probes**, which must not be among
            those that measure.
        rows: how many examples a draw takes.
        temperature: of the divergence.
        seed: of the order in which examples are drawn.

    Raises:
        ConfigError: no behaviours, or two of one name.
    """

    def __init__(
        self,
        behaviors: Sequence[Behavior],
        batch_size: int = 32,
        temperature: float = 3.0,
        seed: int = 0,
    ) -> None:
        names = [behavior.name for behavior in behaviors]
        if not names or len(set(names)) < len(names) or batch_size < 1:
            raise ConfigError(
                f"Pools of {names} with rows={batch_size}: give at least one behaviour, each once, and "
                "at least one row"
            )
        self.behaviors = {behavior.name: behavior for behavior in behaviors}
        self.batch_size, self.temperature, self.seed = batch_size, temperature, seed
        self.drawn = dict.fromkeys(names, 0)
        self.targets: dict[str, Tensor] = {}

    def start(self, view: GuardView) -> None:
        """Keep the outputs of the model as it is now.

        Raises:
            ConfigError: a pool is of a behaviour that is not watched, or holds one of its probes.
        """
        for name, pool in self.behaviors.items():
            if name not in view.behaviors:
                raise ConfigError(
                    f"a pool for {name!r}, which is not watched; the monitor watches "
                    f"{', '.join(view.behaviors)}"
                )
            rows = pool.token_rows()
            if rows is not None:
                check_disjoint(name, rows, view.behaviors[name])
            else:
                warnings.warn(
                    f"riprap: whether the pool of {name!r} holds probes that measure it cannot be "
                    "told: give its probes a method rows(), or see to it that it holds none",
                    stacklevel=2,
                )
            pool.margins.calibrate(view.model, pool.probes)
        with torch.no_grad(), preserve_training_state(view.model):
            for name, pool in self.behaviors.items():
                parts = range(0, len(pool.probes), 256)  # bounds the memory of a pass
                every = [range(at, min(at + 256, len(pool.probes))) for at in parts]
                found = [_outputs(pool.subset(part), view.model) for part in every]
                self.targets[name] = torch.cat(found).clone()

    def gradient(
        self, model: nn.Module, parameters: Sequence[Tensor], shares: Mapping[str, float]
    ) -> tuple[float, Vector | None]:
        """The loss on the next examples, and its gradient.

        Args:
            shares: how much of the draw each behaviour gets, in any unit; 0 or absent: nothing.
        """
        chosen = {
            name: self._next_rows(name, count) for name, count in _rows_per_behavior(shares, self.batch_size).items()
        }
        return loss_and_gradient(self._loss, model, chosen, parameters)

    def _next_rows(self, name: str, count: int) -> list[int]:
        """Indices of the next examples: each once in an order, then all in another order."""
        size, at = len(self.behaviors[name].probes), self.drawn[name]
        self.drawn[name] += count
        found: list[int] = []
        while len(found) < count:
            turn, place = divmod(at + len(found), size)
            made = torch.Generator().manual_seed(self.seed * 1_000_003 + turn)
            found += torch.randperm(size, generator=made)[place:][: count - len(found)].tolist()
        return found

    def _loss(self, model: nn.Module, chosen: dict[str, list[int]]) -> Tensor:
        """Mean over the chosen rows, shape ()."""
        total = sum(map(len, chosen.values()))
        parts = {name: self.behaviors[name].subset(rows) for name, rows in chosen.items()}
        outputs = _outputs_of_all(parts, model)
        sums = [
            self._distance(outputs[name], self.targets[name][rows], parts[name])
            for name, rows in chosen.items()
        ]
        return torch.stack(sums).sum() / total

    def _distance(self, outputs: Tensor, targets: Tensor, part: Behavior) -> Tensor:
        """Sum over rows of how far the outputs are from those of the start."""
        targets = targets.to(outputs.device)
        if not _reads_logits(part):
            return functional.relu(targets - outputs).square().sum()
        heat = self.temperature
        ours, start = (outputs / heat).log_softmax(-1), (targets / heat).log_softmax(-1)
        return heat**2 * functional.kl_div(ours, start, log_target=True, reduction="sum")

    def state_dict(self) -> dict[str, Any]:
        """What was drawn, what the start put out, and what margins fixed then."""
        kinds = {
            name: state
            for name, pool in self.behaviors.items()
            if (state := pool.margins.state_dict()) is not None
        }
        return {"drawn": dict(self.drawn), "targets": dict(self.targets), "kinds": kinds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.drawn, self.targets = dict(state["drawn"]), dict(state["targets"])
        for name, kind in state["kinds"].items():
            self.behaviors[name].margins.load_state_dict(kind)


def _rows_per_behavior(shares: Mapping[str, float], rows: int) -> dict[str, int]:
    """Rows for each share, at least one where there is any."""
    total = sum(shares.values())
    exact = {name: rows * share / total for name, share in shares.items() if share > 0}
    return {name: max(round(count), 1) for name, count in exact.items()}


def _reads_logits(behavior: Behavior) -> bool:
    return isinstance(behavior.margins, LastLogitsMargin)


def _outputs(behavior: Behavior, model: nn.Module) -> Tensor:
    """Logits after each probe, shape (n, vocabulary), or margins, shape (n,)."""
    if _reads_logits(behavior):
        return last_logits(model, behavior.probes)[:, -1].float()
    found = behavior.margins(model, behavior.probes)
    return found if isinstance(found, Tensor) else found.values


def _outputs_of_all(parts: Mapping[str, Behavior], model: nn.Module) -> dict[str, Tensor]:
    """As `_outputs`, in one pass for all that are read from logits."""
    found = {n: _outputs(part, model) for n, part in parts.items() if not _reads_logits(part)}
    together = {name: part for name, part in parts.items() if _reads_logits(part)}
    if together:
        batch = TokenBatch.join([part.probes for part in together.values()])
        logits = last_logits(model, batch)[:, -1].float()
        sizes = [len(part.probes) for part in together.values()]
        found |= dict(zip(together, logits.split(sizes), strict=True))
    return found


def check_disjoint(what: str, rows: Sequence[Sequence[int]], monitored: Behavior) -> None:
    """What is learned again may not be what measures: the score would say nothing.

    Args:
        what: name of what holds the rows, for the message.
        rows: token ids of each example; of margins over continuations those of its prompt.

    Raises:
        ConfigError: some of them are probes of `watched`.
    """
    measuring = set(map(tuple, monitored.token_rows() or []))
    shared = sum(tuple(row) in measuring for row in rows)
    if shared:
        raise ConfigError(
            f"what is learned again of {what!r} holds {shared} of the probes that measure "
            f"{monitored.name!r}: keep them apart, or the score says nothing of what was kept"
        )
