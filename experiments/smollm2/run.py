"""SmolLM2 that was taught to refuse, fine-tuned twice: what eroded, when, what was forecast."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from experiments.harness.interference_claim import Claim
from experiments.smollm2 import results
from experiments.smollm2.checkpoints import Checkpoints
from experiments.smollm2.rows import REFUSAL_PREFIX
from riprap.commands.watch import LiveTableCallback, WatchConfig, prepare, summarize_run
from riprap.errors import ConfigError
from riprap.integrations import smollm2 as model_folders
from riprap.report import run_figure, save_figure

EXAMPLES = {
    "affirmative": (Path("examples/smollm2-affirmative.yaml"), (0, 5, 10, 15, 24)),
    "gsm8k": (Path("examples/smollm2-gsm8k.yaml"), (0, 8, 15, 22, 30)),
}
CLAIM_STEPS = 10
CLAIM_BEHAVIORS = ("refusal", "over_refusal")


class ClaimCallback(TrainerCallback):
    """Runs `Claim` around the trainer's optimizer steps, and saves it when it is done."""

    def __init__(self, file: Path, monitor: Any) -> None:
        self.file, self.monitor = file, monitor
        self.claim: Claim | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the trained parameters of the trainer's own model."""
        model = kwargs["model"]
        parameters = [p for p in model.parameters() if p.requires_grad]
        chosen = [b for b in self.monitor.behaviors if b.name in CLAIM_BEHAVIORS]
        self.claim = Claim(model, chosen, parameters, CLAIM_STEPS, results.AGES)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take fresh protected gradients."""
        if self.claim is not None:
            self.claim.before_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare."""
        if self.claim is not None:
            self.claim.after_step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the arrays of `Claim`."""
        if self.claim is not None:
            np.savez_compressed(self.file, **self.claim.arrays())  # type: ignore[arg-type]


def run(out: Path, data: Path) -> dict[str, Any]:
    """Make the runs that are missing, then tables and figures.

    Args:
        out: folder of the results.
        data: folder of the public data sets; only needed to teach the refusal, if it was not yet.

    Raises:
        ConfigError: an example file is missing, or what it names is.
    """
    if not model_folders.REFUSING.is_dir():
        raise ConfigError(
            f"{model_folders.REFUSING} is missing: run `riprap study smollm2 --prepare` first"
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, (example, steps) in EXAMPLES.items():
        config = WatchConfig.load(example)
        if not (config.run_dir / results.DONE).exists():
            _run_one(config, steps)
        chart = run_figure(config.run_dir)
        save_figure(chart, out / f"{name}.png")
    folders = {name: WatchConfig.load(example).run_dir for name, (example, _) in EXAMPLES.items()}
    results.write(out, folders)
    return {name: str(out / f"{name}.png") for name in EXAMPLES} | {"table": str(out / "README.md")}


def _run_one(config: WatchConfig, steps: tuple[int, ...]) -> None:
    shutil.rmtree(config.run_dir, ignore_errors=True)  # what an interrupted run left
    prepared = prepare(config)
    callbacks = [
        Checkpoints(config.run_dir / results.CHECKPOINTS, steps, prepared.tokenizer, REFUSAL_PREFIX),
        ClaimCallback(config.run_dir / results.CLAIM, prepared.monitor),
        LiveTableCallback(prepared.monitor, config.training.max_steps),
    ]
    prepared.train(callbacks)
    ended = summarize_run(prepared.monitor, config.run_dir)
    (config.run_dir / results.DONE).write_text(json.dumps(ended, indent=1), encoding="utf-8")
