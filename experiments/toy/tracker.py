"""What the study knows and the monitor does not: margins and truth at every single step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from experiments.harness.interference_claim import Claim
from experiments.toy.plan import Plan
from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.detectors import score

HELD_OUT_EVERY = 10  # steps; everything that is no probe is ten times as much as the probes


class Tracker:
    """Records, beside a run and without a trace on it, what its monitor is judged by.

    Saved by `kind/behaviour`: `margins` (steps + 1, n_probes) at every step, `truth`, the
    score on inputs that are no probes, every ten steps, and what `Claim` compares.
    """

    def __init__(
        self, model: nn.Module, probes: list[Behavior], truth: list[Behavior], plan: Plan
    ) -> None:
        self.model, self.probes, self.held_out = model, probes, truth
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.claim = Claim(model, probes, parameters, plan.claim_steps, plan.ages)
        self.margins: dict[str, list[np.ndarray]] = {b.name: [] for b in probes}
        self.truth: dict[str, list[float]] = {b.name: [] for b in probes}
        self._seen = 0
        self._see()

    def before_step(self) -> None:
        """What has to be known before the step."""
        self.claim.before_step()

    def after_step(self) -> None:
        """Compare predicted with realised change, and see where everything stands."""
        self.claim.after_step()
        self._see()

    def _see(self) -> None:
        for name, look in probing.look_together(self.probes, self.model).items():
            self.margins[name].append(look.margins)
        if self._seen % HELD_OUT_EVERY == 0:
            for name, look in probing.look_together(self.held_out, self.model).items():
                self.truth[name].append(score(look.margins))
        self._seen += 1

    def save(self, path: Path) -> None:
        """Write everything to a compressed `.npz`, at once or not at all."""
        arrays = self.claim.arrays()
        for name, margins in self.margins.items():
            arrays[f"margins/{name}"] = np.array(margins, dtype=np.float32)
            arrays[f"truth/{name}"] = np.array(self.truth[name], dtype=np.float32)
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
        partial.rename(path)
