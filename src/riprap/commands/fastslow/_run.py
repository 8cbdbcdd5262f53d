"""Run a configuration: TRL's GRPOTrainer with a population, under a monitor."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from riprap._text import first_line
from riprap.commands._data import Row, read_rows
from riprap.commands._live import CommandTable, Stage, show_stages, summarize_run
from riprap.commands._models import SHOWN, load_model
from riprap.commands.fastslow._config import FastSlowConfig
from riprap.commands.fastslow._reward import Reward, check_answer, load_reward, reward_hash
from riprap.commands.watch import (
    MAX_CHECKPOINTS,
    MODEL_FOLDER,
    TRAINER_FOLDER,
    find_checkpoint,
    lora_config,
    on_cpu,
    require_empty_run_dir,
)
from riprap.detectors import AlertPolicy
from riprap.errors import ConfigError
from riprap.fastslow import EditGrammar, FastSlow, LanguageModel, Proposer, check_arguments
from riprap.integrations.config import build_behaviors, build_monitor, check_monitor_config
from riprap.integrations.hf import MonitorCallback
from riprap.monitor import Monitor

POPULATION_FILE = "population.json"  # inside the folder of the run
_KEYS = {"role", "content"}  # of a turn


class _MonitorCallback(MonitorCallback):
    """Callback that leaves summary and report to `summarize_run`."""

    def _conclude(self) -> None:
        pass


def run_fast_slow(
    config: FastSlowConfig, quiet: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Run a configuration under a live table; save model and population, and return a summary.

    Args:
        quiet: draw the table on standard error.
        resume: continue the run in `config.run_dir` from its newest checkpoint.
    """
    console = Console(file=sys.stderr) if quiet else Console()
    with show_stages(console) as stage:
        run = _prepare(config, resume, stage)
    console.print(*run.notes, sep="\n", markup=False, highlight=False)
    table = CommandTable(quiet)
    run.monitor.add_tracker(table)
    run.fast.progress = lambda done, budget: table.note(
        f"cycle {len(run.fast.cycles) + 1}: {done} of about {budget} rollouts"
    )
    run.trainer.train(None if run.checkpoint is None else str(run.checkpoint))
    folder = Path(config.run_dir) / MODEL_FOLDER
    run.trainer.save_model(str(folder))
    fast, file = run.fast, Path(config.run_dir) / POPULATION_FILE
    file.write_text(json.dumps(fast.state_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
    found = {"model": str(folder), "population": fast.population, "rollouts": fast.rollouts}
    return summarize_run(run.monitor, config.run_dir) | found


@dataclass
class _Run:
    """A configured run that is ready to train; without a checkpoint it trains from the start."""

    trainer: GRPOTrainer
    fast: FastSlow
    monitor: Monitor
    checkpoint: Path | None
    notes: list[str]


def _prepare(config: FastSlowConfig, resume: bool, progress: Stage) -> _Run:
    """Build trainer, population and monitor; the record begins when nothing more is refused."""
    if not resume:
        require_empty_run_dir(config.run_dir, "fastslow")
    policy, reward, proposer, arguments = check_config(config)
    progress("reading rows", 0, 0)
    rows, summary = read_rows(config.data)
    problems = [_problem(row) for row in rows]
    for row, problem in zip(rows, problems, strict=True):
        check_answer(config.reward, problem["answer"], f"row {row.number}")
    scored = reward_hash(config.reward)
    checkpoint = find_checkpoint(config, summary.digest, scored) if resume else None
    progress("loading the model", 0, 0)
    model, tokenizer = load_model(config.model)
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("the model's tokenizer has no chat template: give an instruct model")
    progress("evaluating probes", 0, 0)
    behaviors = build_behaviors(config, model, tokenizer)
    try:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list(problems),
            processing_class=tokenizer,
            peft_config=lora_config(config.lora),
        )
    except (TypeError, ValueError, ImportError) as error:
        first = first_line(error, type(error).__name__)[:SHOWN]
        raise ConfigError(f"TRL refuses this training: {first}") from error
    trainer.remove_callback(PrinterCallback)
    fast = FastSlow(trainer, config.fastslow.population, proposer=proposer, **_options(config))
    metadata: dict[str, Any] = {"task": config.title, "config": config.model_dump(mode="json")}
    metadata |= {"rows": summary.digest, "data": summary.lines()}
    if scored is not None:
        metadata["reward"] = scored
    fast.monitor, guard, _ = build_monitor(
        config, behaviors, policy, config.run_dir, metadata, resume
    )
    trainer.add_callback(_MonitorCallback(fast.monitor, guard, checkpoint=checkpoint))
    return _Run(trainer, fast, fast.monitor, checkpoint, summary.lines())


def check_config(
    config: FastSlowConfig,
) -> tuple[AlertPolicy, Reward, Proposer | None, GRPOConfig]:
    """Check what needs neither rows nor a model, and return what was made of it.

    Raises:
        RiprapError: a name or a value that the run would refuse.
    """
    policy = check_monitor_config(config)
    reward, arguments = load_reward(config.reward), _grpo_config(config)
    lora_config(config.lora)
    if config.data.response_prefix:
        raise ConfigError("`data.response_prefix` would stand in the answers: remove it")
    own = config.fastslow
    proposer: Proposer | None = EditGrammar(own.sentences) if own.sentences else LanguageModel()
    if own.every is None:
        proposer = None
    options = _options(config)
    del options["seed"]
    check_arguments(config.training.num_generations, own.population, proposer=proposer, **options)
    return policy, reward, proposer, arguments


def _options(config: FastSlowConfig) -> dict[str, Any]:
    return config.fastslow.model_dump(exclude={"population", "sentences"})


def _problem(row: Row) -> dict[str, Any]:
    """Return the turns of a row before its answer, and this answer."""
    first = row.first_learned
    if not 0 < first < len(row):
        raise ConfigError(f"row {row.number} is no problem with an answer: give both")
    if first < len(row) - 1:
        raise ConfigError(
            f"row {row.number} goes on after its first answer: give one answer, the last turn, and "
            "weight 0 to those before it"
        )
    if row.tools or row.template_kwargs or any(turn.keys() - _KEYS for turn in row.turns):
        raise ConfigError(
            f"row {row.number} has tools, arguments of the chat template, or turns with more than "
            "a role and a content: fast–slow training has texts only"
        )
    return {"prompt": list(row.turns[:first]), "answer": row.turns[first]["content"]}


def _grpo_config(config: FastSlowConfig) -> GRPOConfig:
    """Make TRL's arguments: the keys of the configuration, and what Riprap sets."""
    training = config.training
    own = {name: getattr(training, name) for name in type(training).model_fields}
    passed = training.passed_on()
    arguments = {name: value for name, value in own.items() if value is not None}
    defaults: dict[str, Any] = {
        "report_to": "none",
        "use_cpu": on_cpu(),
        "save_strategy": "no" if training.save_steps is None else "steps",
        "save_total_limit": MAX_CHECKPOINTS,
        "chat_template_kwargs": config.data.chat_template_kwargs,
    }
    folder = str(Path(config.run_dir) / TRAINER_FOLDER)
    try:
        return GRPOConfig(**defaults | arguments | passed, output_dir=folder, disable_tqdm=True)
    except (TypeError, ValueError, ImportError) as error:
        first = first_line(error, type(error).__name__)[:SHOWN]
        raise ConfigError(f"training: {first}") from error
