"""Run a configuration: fine-tune with TRL's SFTTrainer, under a monitor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftLoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from riprap.commands._data import read_rows
from riprap.commands._encoding import encode_rows
from riprap.commands._live import behavior_rows, live_table, summarize_run
from riprap.commands._models import load_model
from riprap.commands.watch._build import build_behaviors, load_policy
from riprap.commands.watch._config import WatchConfig
from riprap.commands.watch._resume import TRAINER_FOLDER, find_checkpoint, require_empty_run_dir
from riprap.integrations.hf import MonitorCallback
from riprap.monitor import Monitor

MAX_CHECKPOINTS = 2  # the newest, and the one before it in case the newest is incomplete


@dataclass
class TrainingRun:
    """A configured run that is ready to train.

    Attributes:
        model: base model, before TRL adds the adapter.
        checkpoint: folder of the checkpoint to resume from; None: train from the start.
        eval_rows: rows for the trainer's `evaluate`; None: no evaluation.
        notes: what the data contain, and what is left out, in words.
        shown: the first row as stretches of text, and whether they are learned.
    """

    config: WatchConfig
    monitor: Monitor
    model: Any
    tokenizer: Any
    rows: Any
    checkpoint: Path | None = None
    eval_rows: Any = None
    notes: list[str] = field(default_factory=list)
    shown: list[tuple[str, bool]] = field(default_factory=list)

    def train(self, callbacks: Sequence[TrainerCallback] = ()) -> None:
        """Fine-tune under the monitor; `callbacks` are called after the monitor's callback."""
        monitor_callback = MonitorCallback(self.monitor, checkpoint=self.checkpoint)
        trainer = self.make_trainer([monitor_callback, *callbacks])
        trainer.train(None if self.checkpoint is None else str(self.checkpoint))

    def make_trainer(self, callbacks: Sequence[TrainerCallback] = ()) -> SFTTrainer:
        """Make TRL's trainer as configured, with the adapter and with additional callbacks."""
        trainer = SFTTrainer(
            model=self.model,
            args=sft_config(self.config),
            train_dataset=self.rows,
            eval_dataset=self.eval_rows,
            processing_class=self.tokenizer,
            peft_config=lora_config(self.config),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def prepare(config: WatchConfig, resume: bool = False) -> TrainingRun:
    """Build the model, the data and the monitor of a configuration; training does not start.

    Args:
        resume: continue the run in `config.run_dir` from its newest checkpoint.
    """
    if not resume:
        require_empty_run_dir(config.run_dir)
    policy, (rows, summary) = load_policy(config.policy), read_rows(config.data)
    checkpoint = find_checkpoint(config, summary.digest) if resume else None
    model, tokenizer = load_model(config.model)
    kwargs = config.data.chat_template_kwargs
    encoded = encode_rows(rows, tokenizer, config.training.max_length, kwargs)
    notes = [*summary.lines(), *encoded.lines()]
    metadata = {"task": config.title, "config": config.model_dump(mode="json")}
    metadata |= {"rows": summary.digest, "data": notes}
    monitor = Monitor(
        build_behaviors(config, model, tokenizer),
        policy=policy,
        probe_every=config.probe_every,
        run_dir=config.run_dir,
        feature_layer=config.feature_layer,
        metadata=metadata,
        resume=resume,
    )
    run = TrainingRun(config, monitor, model, tokenizer, encoded.dataset(), checkpoint)
    run.notes, run.shown = notes, encoded.shown
    return run


def lora_config(config: WatchConfig) -> PeftLoraConfig | None:
    """Make the configuration of the LoRA adapter; None: train all parameters."""
    if (lora := config.lora) is None:
        return None
    return PeftLoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def sft_config(config: WatchConfig) -> SFTConfig:
    """Make TRL's arguments: loss on responses only, no trackers, checkpoints if configured."""
    training = config.training.model_dump()
    save_steps = training.pop("save_steps")
    return SFTConfig(
        **training,
        output_dir=str(Path(config.run_dir) / TRAINER_FOLDER),
        completion_only_loss=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no" if save_steps is None else "steps",
        save_steps=save_steps or config.training.max_steps,
        save_total_limit=MAX_CHECKPOINTS,
        report_to="none",
        logging_steps=10,
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


class LiveTableCallback(TrainerCallback):
    """Show the live table during training."""

    def __init__(self, monitor: Monitor, steps: int, quiet: bool = False) -> None:
        self.monitor = monitor
        self.table = live_table(monitor, steps, quiet)

    def on_train_begin(self, *arguments: Any, **kwargs: Any) -> None:
        """Open the table."""
        self.table.__enter__()

    def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
        """Update the table."""
        self.table.update(self.monitor.step, behavior_rows(self.monitor))

    def on_train_end(self, *arguments: Any, **kwargs: Any) -> None:
        """Close the table; its last state stays visible."""
        self.table.__exit__(None, None, None)


def run_watch(config: WatchConfig, quiet: bool = False, resume: bool = False) -> dict[str, Any]:
    """Run a configuration under a live table, write its report, and return its summary.

    Args:
        quiet: draw the table on standard error.
        resume: continue the run in `config.run_dir` from its newest checkpoint.
    """
    run = prepare(config, resume)
    run.train([LiveTableCallback(run.monitor, config.training.max_steps, quiet)])
    return summarize_run(run.monitor, config.run_dir)
