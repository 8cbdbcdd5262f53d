"""Trace of one training run: what its behaviors did, step by step, and what was done to them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from riprap.detectors import score

Half = Literal["exploratory", "confirmatory"]


@dataclass
class BehaviorTrace:
    """What one behavior did in a run.

    Attributes:
        margins: at each evaluation, shape (evaluations, n_probes).
        groups: number of the group (category, template) of each probe, shape (n_probes,).
        interference: ⟨h_b, Δθ⟩ of each step, shape (steps,); NaN: unknown. h_b is the gradient of
            the mean margin, as it was at the latest refresh.
        gradient_norms: ‖h_b‖ at each refresh.
        floor: score under which the behavior is broken.
    """

    margins: np.ndarray
    groups: np.ndarray
    interference: np.ndarray
    gradient_norms: np.ndarray
    floor: float = 0.9

    def scores(self) -> np.ndarray:
        """Return the score at each evaluation, shape (evaluations,)."""
        return np.array([score(margins) for margins in self.margins])


@dataclass
class Trace:
    """One recorded run.

    Attributes:
        corpus: "real", "unlike" or "nulls"; with `name` it identifies the run.
        half: rules are chosen on exploratory runs; confirmatory ones are read once, at the end.
        about: what a table groups by: model, task, optimizer, schedule, rate, replay, seed.
        steps: evaluated steps, ascending, from 0; shape (evaluations,).
        rates: learning rate of each step, as a share of the largest; shape (steps,).
        losses: training loss of each step, shape (steps,).
        refreshed: steps after which the gradients h_b were computed anew, from 0.
        behaviors: by name.
    """

    corpus: str
    name: str
    half: Half
    about: dict[str, Any]
    steps: np.ndarray
    rates: np.ndarray
    losses: np.ndarray
    refreshed: np.ndarray
    behaviors: dict[str, BehaviorTrace] = field(default_factory=dict)

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.rates)

    def break_step(self, behavior: str) -> int | None:
        """Return the first evaluated step with a score under the floor; None: never.

        None too if the behavior started there: it had nothing to lose.
        """
        own = self.behaviors[behavior]
        under = np.flatnonzero(own.scores() < own.floor)
        return int(self.steps[under[0]]) if len(under) and under[0] > 0 else None

    def starts_broken(self, behavior: str) -> bool:
        """Return whether the score was under the floor before training."""
        own = self.behaviors[behavior]
        return bool(score(own.margins[0]) < own.floor)

    def save(self, folder: Path) -> Path:
        """Write the run to `folder/corpus/name.npz`, and return the path.

        Margins are stored in half precision where they fit in it, other numbers in single.
        """
        arrays: dict[str, np.ndarray] = {
            "steps": self.steps.astype(np.int32),
            "rates": self.rates.astype(np.float32),
            "losses": self.losses.astype(np.float32),
            "refreshed": self.refreshed.astype(np.int32),
        }
        for place, own in enumerate(self.behaviors.values()):
            arrays[f"{place}.margins"] = _rounded(own.margins)
            arrays[f"{place}.groups"] = own.groups.astype(np.int32)
            arrays[f"{place}.interference"] = own.interference.astype(np.float32)
            arrays[f"{place}.gradient_norms"] = own.gradient_norms.astype(np.float32)
        facts = {
            "corpus": self.corpus,
            "name": self.name,
            "half": self.half,
            "about": self.about,
            "behaviors": {name: own.floor for name, own in self.behaviors.items()},
        }
        path = folder / self.corpus / f"{self.name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez_compressed(unfinished, facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]
        unfinished.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            facts = json.loads(str(stored["facts"]))
            floors: dict[str, float] = facts.pop("behaviors")
            behaviors = {
                name: BehaviorTrace(
                    stored[f"{place}.margins"].astype(np.float64),
                    stored[f"{place}.groups"],
                    stored[f"{place}.interference"].astype(np.float64),
                    stored[f"{place}.gradient_norms"].astype(np.float64),
                    floor,
                )
                for place, (name, floor) in enumerate(floors.items())
            }
            series = {
                name: stored[name].astype(np.float64 if name in ("rates", "losses") else int)
                for name in ("steps", "rates", "losses", "refreshed")
            }
        return cls(**facts, **series, behaviors=behaviors)


def load_corpus(folder: Path, corpus: str, half: Half) -> list[Trace]:
    """Read the runs of one half of a corpus, in the order of their names."""
    paths = sorted((folder / corpus).glob("*.npz"))
    traces = [Trace.load(path) for path in paths if not path.name.endswith(".part.npz")]
    return [trace for trace in traces if trace.half == half]


def _rounded(margins: np.ndarray) -> np.ndarray:
    """Return the margins in half precision, unless that overflows or changes a sign."""
    with np.errstate(over="ignore"):
        half = margins.astype(np.float16)
    if np.isfinite(half).all() and ((half > 0) == (margins > 0)).all():
        return half
    return margins.astype(np.float32)
