"""What is measured at one point around a checkpoint: margins, and answers if they are judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.errors import BehaviorError, ConfigError

# The slow lane: the share of a behaviour's probes that the model's own answers still keep.
Judge = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Point:
    """What was seen at one point, by behaviour.

    Attributes:
        scores: share of probes whose margin is above 0; one that is not finite counts as broken.
        margins: shape (n_probes,), as they came.
        doubtful: whether a margin was not finite, or the margins were insufficient.
        judged: the same share by the answers, where there is a judge.
    """

    scores: dict[str, float]
    margins: dict[str, np.ndarray]
    doubtful: dict[str, bool]
    judged: dict[str, float] = field(default_factory=dict)


class Lookout:
    """Looks at several behaviours, in as few passes as they can share, and leaves no trace.

    Raises:
        ConfigError: no behaviours, two of one name, or a judge of none of them.
    """

    def __init__(
        self,
        model: nn.Module,
        behaviors: Sequence[Behavior],
        judges: Mapping[str, Judge] | None = None,
    ) -> None:
        counts = Counter(behavior.name for behavior in behaviors)
        if not counts:
            raise ConfigError("a basin is one of behaviours: give at least one")
        if max(counts.values()) > 1:
            name = counts.most_common(1)[0][0]
            raise ConfigError(f"two behaviours are called {name!r}: give each a name of its own")
        self.model, self.judges = model, dict(judges or {})
        for name in self.judges:
            if name not in counts:
                raise ConfigError(
                    f"generated names {name!r}, which is none of the behaviours "
                    f"{', '.join(map(repr, counts))}"
                )
        self._passes = probing.shared_passes(behaviors, model)

    def look(self) -> Point:
        """The model where it stands."""
        scores, margins, doubtful = {}, {}, {}
        for group in self._passes:
            for name, seen in probing.look_together(group, self.model).items():
                finite = np.isfinite(seen.margins)
                scores[name] = float(((seen.margins > 0) & finite).mean())
                margins[name] = seen.margins
                doubtful[name] = not finite.all() or bool(seen.insufficient)
        judged = {name: self._judged(name, judge) for name, judge in self.judges.items()}
        return Point(scores, margins, doubtful, judged)

    def _judged(self, name: str, judge: Judge) -> float:
        with torch.no_grad(), probing.no_trace(self.model):
            found = float(judge(self.model))
        if not 0 <= found <= 1:
            raise BehaviorError(
                f"the judge of {name!r} gave {found}; a share of probes between 0 and 1 is needed"
            )
        return found
