"""Run a configuration: fine-tune with TRL's SFTTrainer, under a monitor."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from riprap._text import first_line
from riprap.commands._data import DataConfig, Row, read_rows
from riprap.commands._encoding import (
    EncodedRows,
    encode_rows,
    print_data,
    require_rows_of_tokens,
)
from riprap.commands._live import CommandTable, Stage, show_stages, summarize_run
from riprap.commands._models import SHOWN, load_model
from riprap.commands.watch._config import LoraConfig, WatchConfig
from riprap.commands.watch._resume import TRAINER_FOLDER, find_checkpoint, require_empty_run_dir
from riprap.detectors import AlertPolicy
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.integrations.config import (
    build_behaviors,
    build_monitor,
    build_selector,
    check_behaviors,
    check_monitor_config,
    check_selector,
)
from riprap.integrations.hf import MonitorCallback, SelectionCallback
from riprap.monitor import Monitor
from riprap.selection import Selector

MODEL_FOLDER = "model"  # inside the folder of the run: the trained adapter or model
MAX_CHECKPOINTS = 2  # the newest, and the one before it in case the newest is incomplete


class _MonitorCallback(MonitorCallback):
    """Callback that leaves summary and report to `summarize_run`."""

    def _conclude(self) -> None:
        pass


@dataclass
class TrainingRun:
    """A configured run that is ready to train.

    Attributes:
        model: base model, before TRL adds the adapter.
        rows: rows to train on, with `input_ids` and `labels`, or in a form that TRL tokenizes.
        checkpoint: folder of the checkpoint to resume from; None: train from the start.
        eval_rows: rows for the trainer's `evaluate`; None: no evaluation.
        guard, selector: interventions; None: training is only watched.
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
    guard: Guard | None = None
    selector: Selector | None = None
    notes: list[str] = field(default_factory=list)
    shown: list[tuple[str, bool]] = field(default_factory=list)

    def train(self, callbacks: Sequence[TrainerCallback] = ()) -> SFTTrainer:
        """Fine-tune under the monitor; `callbacks` are called after the monitor's callback."""
        own: list[TrainerCallback] = [
            _MonitorCallback(self.monitor, self.guard, checkpoint=self.checkpoint)
        ]
        if self.selector is not None:
            own.append(SelectionCallback(self.selector))
        trainer = self.make_trainer([*own, *callbacks])
        trainer.train(None if self.checkpoint is None else str(self.checkpoint))
        return trainer

    def make_trainer(self, callbacks: Sequence[TrainerCallback] = ()) -> SFTTrainer:
        """Make TRL's trainer as configured, with the adapter and with additional callbacks."""
        try:
            trainer = SFTTrainer(
                model=self.model,
                args=sft_config(self.config),
                train_dataset=self.rows,
                eval_dataset=self.eval_rows,
                processing_class=self.tokenizer,
                peft_config=lora_config(self.config.lora),
                callbacks=list(callbacks),
            )
        except (TypeError, ValueError, ImportError) as error:
            first = first_line(error, type(error).__name__)[:SHOWN]
            raise ConfigError(f"TRL refuses this training: {first}") from error
        trainer.remove_callback(PrinterCallback)
        return trainer


def check_config(config: WatchConfig) -> AlertPolicy:
    """Check what needs neither rows nor a model, for each command that takes a configuration.

    Returns:
        the alert policy.

    Raises:
        RiprapError: a name or a value that the run would refuse.
    """
    policy = check_monitor_config(config)
    if config.selector is not None:
        check_selector(config.selector, check_behaviors(config))
    sft_config(config), lora_config(config.lora)
    if config.quantization is not None and config.eval_data is not None and on_cpu():
        raise ConfigError(
            "on a CPU an evaluation ends the training of weights in 4 or 8 bits (a fault of "
            "bitsandbytes): remove `eval_data`"
        )
    return policy


def prepare(
    config: WatchConfig, resume: bool = False, progress: Stage = lambda stage, done, total: None
) -> TrainingRun:
    """Build the model, the data and the monitor of a configuration; training does not start.

    Names, files and rows are checked before the model is loaded.

    Args:
        resume: continue the run in `config.run_dir` from its newest checkpoint.
        progress: called with the name of the stage, and how much of it is done.
    """
    if not resume:
        require_empty_run_dir(config.run_dir, "watch")
    policy = check_config(config)
    progress("reading rows", 0, 0)
    rows, summary = read_rows(config.data)
    eval_rows, _ = read_rows(config.eval_data) if config.eval_data is not None else ([], None)
    checkpoint = find_checkpoint(config, summary.digest) if resume else None
    progress("loading the model", 0, 0)
    quantization = None if config.quantization is None else config.quantization.model_dump()
    model, tokenizer = load_model(config.model, quantization)
    encoded = _encode(config, config.data, rows, tokenizer, progress)
    require_rows_of_tokens(encoded.rows, model)
    notes = [*summary.lines(), *encoded.lines()]
    progress("evaluating probes", 0, 0)
    behaviors = build_behaviors(config, model, tokenizer)
    metadata = {"task": config.title, "config": config.model_dump(mode="json")}
    metadata |= {"rows": summary.digest, "data": notes}
    monitor, guard, behaviors = build_monitor(
        config, behaviors, policy, config.run_dir, metadata, resume
    )
    run = TrainingRun(config, monitor, model, tokenizer, encoded.dataset(), checkpoint)
    run.notes, run.shown, run.guard = notes, encoded.shown, guard
    if config.eval_data is not None:
        encoded = _encode(config, config.eval_data, eval_rows, tokenizer, progress)
        require_rows_of_tokens(encoded.rows, model)
        run.eval_rows = encoded.dataset()
    run.selector = build_selector(
        config.selector, behaviors, lambda **record: monitor.log_event("selection", **record)
    )
    return run


def _encode(
    config: WatchConfig, data: DataConfig, rows: Sequence[Row], tokenizer: Any, progress: Stage
) -> EncodedRows:
    return encode_rows(
        rows,
        tokenizer,
        None if config.training.passed_on().get("packing") else config.training.max_length,
        data.chat_template_kwargs,
        lambda done, total: progress("tokenizing rows", done, total),
    )


def lora_config(lora: LoraConfig | None) -> PeftLoraConfig | None:
    """Make the configuration of the LoRA adapter; None: train all parameters."""
    if lora is None:
        return None
    modules = lora.target_modules
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
        **lora.passed_on(),
    )


def sft_config(config: WatchConfig) -> SFTConfig:
    """Make TRL's arguments: the keys of the configuration, and what Riprap sets."""
    training = config.training
    own = {name: getattr(training, name) for name in type(training).model_fields}
    arguments = {name: value for name, value in own.items() if value is not None}
    arguments["max_length"] = training.max_length  # None: rows are not cut
    defaults = {
        "report_to": "none",
        "save_strategy": "no" if training.save_steps is None else "steps",
        "save_total_limit": MAX_CHECKPOINTS,
        "use_cpu": on_cpu(),  # or else bf16 is refused on a CPU
        "eval_strategy": "no" if config.eval_data is None else "epoch",
    }
    arguments = {**defaults, **arguments, **training.passed_on()}
    try:
        with warnings.catch_warnings():  # TRL uses the name that transformers calls deprecated
            warnings.filterwarnings("ignore", "`gradient_checkpointing`", FutureWarning)
            return SFTConfig(
                **arguments,
                output_dir=str(Path(config.run_dir) / TRAINER_FOLDER),
                completion_only_loss=True,
                disable_tqdm=True,
            )
    except (TypeError, ValueError, ImportError) as error:
        first = first_line(error, type(error).__name__)[:SHOWN]
        raise ConfigError(f"training: {first}") from error


def on_cpu() -> bool:
    """Return whether this machine has no accelerator."""
    return not torch.accelerator.is_available()


def planned_steps(trainer: SFTTrainer) -> int:
    """Return the number of optimizer steps that the trainer will take."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = len(trainer.get_train_dataloader())
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * per_epoch)


def run_watch(config: WatchConfig, quiet: bool = False, resume: bool = False) -> dict[str, Any]:
    """Run a configuration under a live table; save the model, and return the run's summary.

    Args:
        quiet: draw the table on standard error.
        resume: continue the run in `config.run_dir` from its newest checkpoint.
    """
    console = Console(file=sys.stderr) if quiet else Console()
    with show_stages(console) as stage:
        run = prepare(config, resume, stage)
    print_data(config.data.path, run.notes, run.shown, console)
    run.monitor.add_tracker(CommandTable(quiet))
    trainer = run.train()
    folder = Path(config.run_dir) / MODEL_FOLDER
    trainer.save_model(str(folder))
    return summarize_run(run.monitor, config.run_dir) | {"model": str(folder)}
