"""One monitored fine-tuning run of SmolLM2 that was taught to refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.harness.cache import cached
from experiments.harness.interference_claim import InterferenceComparison
from experiments.smollm2.checkpoints import GenerationCheckpoints
from experiments.smollm2.teaching import REFUSAL_PREFIX
from experiments.worlds.first_probe_sets import write
from riprap.commands.watch import WatchConfig, prepare

EXAMPLES = {  # configuration, and steps of the checkpoints
    "affirmative": (Path("experiments/smollm2/affirmative.yaml"), (0, 5, 10, 15, 24)),
    "gsm8k": (Path("experiments/smollm2/gsm8k.yaml"), (0, 8, 15, 22, 30)),
}
AGES = (1, 2, 3, 4, 8)  # of the stale h_b that are compared, in steps
CHECKPOINTS = "checkpoints.jsonl"  # in a run's folder
COMPARED_STEPS = 10
COMPARED_BEHAVIORS = ("refusal", "over_refusal")


class ComparisonCallback(TrainerCallback):
    """Runs `InterferenceComparison` around the trainer's optimizer steps."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor
        self.comparison: InterferenceComparison | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the trained parameters of the trainer's own model."""
        model = kwargs["model"]
        parameters = [p for p in model.parameters() if p.requires_grad]
        behaviors = [b for b in self.monitor.behaviors if b.name in COMPARED_BEHAVIORS]
        self.comparison = InterferenceComparison(model, behaviors, parameters, COMPARED_STEPS, AGES)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compute fresh protected gradients."""
        if self.comparison is not None:
            self.comparison.before_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare predicted with realized change."""
        if self.comparison is not None:
            self.comparison.after_step()


@cached("smollm2-{name}/claim.npz", own_folder=True)
def simulate(name: str) -> dict[str, np.ndarray]:
    """Train as an example describes; return the arrays of `InterferenceComparison`."""
    example, steps = EXAMPLES[name]
    folder = simulate.path(name).parent
    config = WatchConfig.load(example)
    behaviors = tuple(
        own.model_copy(
            update={"probe_set": str(write(str(own.probe_set), folder.parent / "probe_sets"))}
        )
        for own in config.behaviors
    )
    run = prepare(config.model_copy(update={"run_dir": folder, "behaviors": behaviors}))
    comparison = ComparisonCallback(run.monitor)
    checkpoints = GenerationCheckpoints(folder / CHECKPOINTS, steps, run.tokenizer, REFUSAL_PREFIX)
    run.train([checkpoints, comparison])
    assert comparison.comparison is not None
    return comparison.comparison.arrays()
