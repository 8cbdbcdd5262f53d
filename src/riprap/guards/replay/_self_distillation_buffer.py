"""Replay buffer that needs no labels: examples with the outputs of the initial model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap._checks import CheckedCall
from riprap._distributed import warn_once
from riprap.behaviors import (
    Behavior,
    LastLogitsMargin,
    NextToken,
    ProbeSet,
    TokenBatch,
    last_logits,
    require_behaviors,
)
from riprap.detectors import score, score_interval
from riprap.errors import ConfigError
from riprap.evaluation import loss_and_gradient, preserve_training_state
from riprap.guards._base import GuardView, sum_of_finite
from riprap.linalg import Vector

KEPT_LOGITS = 16  # of each example; float32 holds token numbers up to 2^24 exactly
LARGEST_PULL = 1.0  # nats; a logit or margin that has changed more is pulled back no harder


class SelfDistillationBuffer(metaclass=CheckedCall):
    """Replay buffer of examples whose targets are the initial model's own outputs.

    The targets are the largest 16 logits after each example. The loss of an example is the mean
    squared change of these logits (dark experience replay, Buzzega et al., 2004.07211; linear from
    1 nat on, so that the pull is bounded), plus the decrease of the log-probability of the initial
    answer, which is the most likely token. Where the right answer is known (`Behavior.next_token`)
    it takes its place, and an increase counts too, as in DER++: the example is learned further.
    For margins that are not read from the logits of one position, the targets are the margins, and
    the loss is the squared decrease, linear from 1 on. The loss is 0 before training. No labels are
    needed, and the logits carry more information than one correct answer.

    Args:
        behaviors: behaviors named like monitored ones, on **other probes** than those monitored;
            see `Behavior.split`.
        batch_size: number of examples in each draw.
        seed: seed of the order in which examples are drawn.

    Attributes:
        doubts: what seems wrong with the examples, by behavior, as the start found it.

    Raises:
        ConfigError: there are no behaviors, two have the same name, `batch_size` is less than 1, or
            probes are no `ProbeSet`; in `start`, a behavior is not monitored, or an example is one
            of its monitored probes.
    """

    def __init__(
        self,
        behaviors: Sequence[Behavior],
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        behaviors = require_behaviors(
            behaviors, "there is nothing to replay", "SelfDistillationBuffer([{}])"
        )
        names = [behavior.name for behavior in behaviors]
        if not names or len(set(names)) < len(names) or batch_size < 1:
            raise ConfigError(
                f"SelfDistillationBuffer({names}, batch_size={batch_size}): give at least one "
                "behavior, each name once, and a batch_size of at least 1"
            )
        for behavior in behaviors:
            if not isinstance(behavior.probes, ProbeSet):
                raise ConfigError(
                    f"SelfDistillationBuffer cannot draw examples of {behavior.name!r}: its probes "
                    f"are of type {type(behavior.probes).__name__}; derive their class from "
                    "riprap.behaviors.ProbeSet, or replay batches of your own with guards.Replay"
                )
        self.behaviors = {behavior.name: behavior for behavior in behaviors}
        self.batch_size, self.seed = batch_size, seed
        self.drawn = dict.fromkeys(names, 0)
        self.targets: dict[str, Tensor] = {}
        self.left_out: list[str] = []
        self.doubts: dict[str, str] = {}

    def __repr__(self) -> str:
        """Return the behaviors with their numbers of examples."""
        counts = [f"{name}: {len(own.probes)}" for name, own in self.behaviors.items()]
        return f"SelfDistillationBuffer({', '.join(counts)})"

    def start(self, view: GuardView) -> None:
        """Store the current outputs of the model, and warn if it fails the examples."""
        unknown, self.doubts = [], {}
        for name, behavior in self.behaviors.items():
            if name not in view.behaviors:
                raise ConfigError(
                    f"the replay buffer has examples of {name!r}, which is not monitored; the "
                    f"monitor has {', '.join(view.behaviors)}"
                )
            rows = behavior.token_rows()
            if rows is not None:
                check_disjoint(name, rows, view.behaviors[name])
            else:
                unknown.append(name)
            behavior.margins.calibrate(view.model, behavior.probes)
        if unknown:
            warn_once(
                "cannot check whether the replay buffer contains monitored probes of "
                f"{', '.join(map(repr, unknown))}, which are no token ids; make sure that it "
                "contains none"
            )
        with torch.no_grad(), preserve_training_state(view.model):
            for name, behavior in self.behaviors.items():
                n = len(behavior.probes)
                parts = [range(at, min(at + 256, n)) for at in range(0, n, 256)]  # bounds memory
                found = [_targets(behavior.subset(part), view.model) for part in parts]
                self.targets[name] = torch.cat([targets for targets, _ in found])
                margins = torch.cat([margins for _, margins in found])
                self._compare(view, name, score(margins.float().cpu().numpy()))

    def _compare(self, view: GuardView, name: str, own: float) -> None:
        """Warn if before training the model surely fails more examples than monitored probes."""
        history = view.histories.get(name)
        if history is None or history.steps != [view.step]:
            return
        n, monitored = len(self.behaviors[name].probes), history.margins[0]
        if score_interval(own, n)[1] < score_interval(score(monitored), len(monitored))[0]:
            self.doubts[name] = (
                f"the model passes {own:.0%} of the {n} examples of {name!r} in the replay buffer, "
                f"and {score(monitored):.0%} of the monitored probes, before training: check that "
                "the examples are of this behavior, with the right answers"
            )
            warn_once(self.doubts[name])

    def gradient(
        self, model: nn.Module, parameters: Sequence[Tensor], shares: Mapping[str, float]
    ) -> tuple[float, Vector | None]:
        """Compute the loss on the next examples, drawn in proportion to `shares`, and its gradient.

        A share above 0 draws at least one example. Behaviors on whose examples the loss or its
        gradient is not finite are left out, and named in `left_out`.
        """
        total = sum(shares.values())
        exact = {name: self.batch_size * s / total for name, s in shares.items() if s > 0}
        rows = {name: self._next_rows(name, max(round(n), 1)) for name, n in exact.items()}

        def compute(names: list[str]) -> tuple[float, Vector | None]:
            own = {name: rows[name] for name in names}
            return loss_and_gradient(self._loss, model, own, parameters)

        loss, gradient, self.left_out = sum_of_finite(compute, list(rows))
        return loss, gradient

    def _next_rows(self, name: str, count: int) -> list[int]:
        """Return the indices of the next examples; each pass uses every example once."""
        size, start = len(self.behaviors[name].probes), self.drawn[name]
        self.drawn[name] += count
        rows: list[int] = []
        while len(rows) < count:
            epoch, offset = divmod(start + len(rows), size)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(size, generator=generator)
            rows += order[offset:][: count - len(rows)].tolist()
        return rows

    def _loss(self, model: nn.Module, rows: dict[str, list[int]]) -> Tensor:
        """Compute the mean loss over rows, shape ()."""
        total = sum(map(len, rows.values()))
        parts = {name: self.behaviors[name].subset(own) for name, own in rows.items()}
        outputs = _outputs_of_all(parts, model)
        sums = [
            self._distance(outputs[name], self.targets[name][own], parts[name])
            for name, own in rows.items()
        ]
        return torch.stack(sums).sum() / total

    def _distance(self, outputs: Tensor, targets: Tensor, part: Behavior) -> Tensor:
        """Compute the distance between outputs and targets, summed over rows."""
        targets = targets.to(outputs.device)
        distance = answer_distance if _reads_logits(part) else margin_distance
        return distance(outputs, targets).sum()

    def state_dict(self) -> dict[str, Any]:
        """Return the positions, the targets, the doubts, and the state of the margins."""
        margins = {
            name: state
            for name, behavior in self.behaviors.items()
            if (state := behavior.margins.state_dict()) is not None
        }
        return {
            "drawn": dict(self.drawn),
            "targets": dict(self.targets),
            "doubts": dict(self.doubts),
            "margins": margins,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.drawn, self.targets = dict(state["drawn"]), dict(state["targets"])
        self.doubts = dict(state["doubts"])
        for name, margin_state in state["margins"].items():
            self.behaviors[name].margins.load_state_dict(margin_state)


def _targets(behavior: Behavior, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the targets, and the margins, shape (n,)."""
    outputs, margins = _outputs(behavior, model), behavior.margins
    if not isinstance(margins, LastLogitsMargin) or margins.branches:
        return outputs, outputs
    known = margins.targets if isinstance(margins, NextToken) else None
    return answer_targets(outputs, known), margins.from_logits(outputs)


def answer_targets(logits: Tensor, known: Tensor | None = None) -> Tensor:
    """Return what is kept of logits, shape (n, 2k + 3) for logits of shape (n, vocabulary).

    The k largest logits in descending order, their tokens, the answer's token and log-probability,
    and whether the answer is known to be right.

    Args:
        known: the right answers, shape (n,); None: the most likely ones take their place.
    """
    top = logits.topk(min(KEPT_LOGITS, logits.shape[-1]), dim=-1)
    answers = top.indices[:, :1] if known is None else known.to(top.indices)[:, None]
    before = logits.log_softmax(-1).gather(-1, answers)
    right = torch.full_like(before, known is not None)
    return torch.cat([top.values, top.indices.to(before), answers.to(before), before, right], -1)


def answer_distance(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the distance of logits from `answer_targets`, shape (n,); 0 where nothing changed.

    Negative where a right answer has become more certain.
    """
    k = targets.shape[-1] // 2 - 1
    values, tokens, answers = targets[:, :k], targets[:, k : 2 * k].long(), targets[:, -3].long()
    before, right = targets[:, -2], targets[:, -1]
    read = logits.gather(-1, tokens)
    now = -functional.cross_entropy(logits, answers, reduction="none")
    change = functional.huber_loss(read, values, reduction="none", delta=LARGEST_PULL)
    lost = before - now
    return 2 * change.mean(-1) + torch.where(right > 0, lost, functional.relu(lost))


def margin_distance(margins: Tensor, targets: Tensor) -> Tensor:
    """Return the squared decrease of margins, linear from 1 on, shape (n,)."""
    kept = torch.minimum(margins, targets)
    return 2 * functional.huber_loss(kept, targets, reduction="none", delta=LARGEST_PULL)


def _reads_logits(behavior: Behavior) -> bool:
    margins = behavior.margins
    return isinstance(margins, LastLogitsMargin) and not margins.branches


def _outputs(behavior: Behavior, model: nn.Module) -> Tensor:
    """Return the logits after each probe, shape (n, vocabulary), or the margins, shape (n,)."""
    if _reads_logits(behavior):
        return last_logits(model, behavior.probes)[:, -1].float()
    margins = behavior.margins(model, behavior.probes)
    return margins if isinstance(margins, Tensor) else margins.values


def _outputs_of_all(parts: Mapping[str, Behavior], model: nn.Module) -> dict[str, Tensor]:
    """Return `_outputs` of all parts, with one pass for all that read logits."""
    outputs = {n: _outputs(part, model) for n, part in parts.items() if not _reads_logits(part)}
    batched = {name: part for name, part in parts.items() if _reads_logits(part)}
    if batched:
        batch = TokenBatch.join([part.probes for part in batched.values()])
        logits = last_logits(model, batch)[:, -1].float()
        sizes = [len(part.probes) for part in batched.values()]
        outputs |= dict(zip(batched, logits.split(sizes), strict=True))
    return outputs


def check_disjoint(name: str, rows: Sequence[Sequence[int]], monitored: Behavior) -> None:
    """Raise a ConfigError if an example is a monitored probe, which would contaminate the score.

    `name` is that of the buffer, for the message; `rows` are the token ids of the prompts.
    """
    probes = set(map(tuple, monitored.token_rows() or []))
    shared = sum(tuple(row) in probes for row in rows)
    if shared:
        raise ConfigError(
            f"the replay buffer of {name!r} contains {shared} evaluation probes of "
            f"{monitored.name!r}; use disjoint probes (Behavior.split), otherwise the score is "
            "contaminated"
        )
