"""Plugin for Axolotl: `plugins: [riprap.integrations.axolotl.RiprapPlugin]`, and a block `riprap:`.

Written for the plugin interface of Axolotl 0.18.
"""

# ruff: noqa: E402
from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from riprap._extras import is_installed, require
from riprap.errors import ConfigError, MissingExtraError

if not is_installed("axolotl"):
    raise MissingExtraError("axolotl is not installed: see https://docs.axolotl.ai")
require("hf", "transformers")

from axolotl.integrations.base import BasePlugin
from transformers import TrainerControl, TrainerState, TrainingArguments

from riprap._distributed import unwrap_model
from riprap.behaviors import Behavior
from riprap.integrations._ending import Usage
from riprap.integrations.config import (
    MonitorConfig,
    build_behaviors,
    build_monitor,
    check_monitor_config,
)
from riprap.integrations.hf import MonitorCallback

BLOCK = "riprap"  # key of the block, and its name in errors


class RiprapArgs(BaseModel):
    """Key that the plugin adds to Axolotl's configuration; `RiprapPlugin.register` checks it."""

    riprap: dict[str, Any] | None = None


class RiprapPlugin(BasePlugin):
    """Monitor of an Axolotl training, as the block `riprap:` of its configuration describes it.

    The keys are those of `riprap watch` about monitoring: `behaviors`, `run_dir`, `guard`,
    `policy`, `probe_every`, `budget`, `stop_on`, `feature_layer`, `title`. They are checked before
    Axolotl loads a model; the monitor is made when training begins.
    """

    def register(self, cfg: Any) -> None:
        """Check the block.

        Raises:
            ConfigError: there is none, or a key, a name or a value in it is wrong.
        """
        check_monitor_config(_read(cfg))

    def get_input_args(self) -> str:
        """Return the name of the class of the plugin's keys, which Axolotl imports."""
        return f"{__name__}.{RiprapArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Return the callback that monitors the trainer."""
        config, behaviors = _read(cfg), None
        resumes = cfg.get("resume_from_checkpoint") or cfg.get("auto_resume_from_checkpoints")
        if resumes and any(behavior.keep_passing for behavior in config.behaviors):
            # When training begins, the trained weights are loaded: too late to choose probes.
            model = unwrap_model(trainer.model)
            behaviors = build_behaviors(config, model, trainer.processing_class)
        return [_AxolotlCallback(config, behaviors, str(cfg.get("base_model") or ""))]


class _AxolotlCallback(MonitorCallback):
    """Callback that makes its monitor when training begins: a trainer may only evaluate.

    Args:
        behaviors: those of the configuration; None: made when training begins.
        title: of the run, if the configuration has none.
    """

    monitor: Any

    def __init__(self, config: MonitorConfig, behaviors: list[Behavior] | None, title: str) -> None:
        self._config, self._behaviors, self._title = config, behaviors, title
        self._policy = check_monitor_config(config)
        self.checkpoint = None
        self._take(None, None)
        self._usage = Usage(self)
        self._usage.began = True  # training need not follow

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the monitor of the configuration, and begin to watch."""
        if self.monitor is None:
            self._make_monitor(state.global_step > 0, **kwargs)
        super().on_train_begin(args, state, control, **kwargs)

    def _make_monitor(self, resume: bool, **kwargs: Any) -> None:
        model, tokenizer = kwargs.get("model"), kwargs.get("processing_class")
        if model is None or tokenizer is None:
            raise ConfigError(
                "training started without a model or a tokenizer, so there is nothing to monitor: "
                "RiprapPlugin needs a trainer that has both"
            )
        config, behaviors = self._config, self._behaviors
        if behaviors is None:
            behaviors = build_behaviors(config, unwrap_model(model), tokenizer)
        metadata = {"task": config.title or self._title, "config": config.model_dump(mode="json")}
        run_dir = config.expanded_run_dir(BLOCK, resume)
        monitor, guard, _ = build_monitor(
            config, behaviors, self._policy, run_dir, metadata, resume
        )
        self._take(monitor, guard)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the numbers of the training, unless there is none."""
        if self.monitor is not None:
            super().on_log(args, state, control, **kwargs)


def _read(cfg: Any) -> MonitorConfig:
    """Return the block of Axolotl's configuration.

    Raises:
        ConfigError: there is none, or it is no such block.
    """
    block = _plain(cfg.get(BLOCK))
    if block is None:
        raise ConfigError(
            "RiprapPlugin needs a block `riprap:` in Axolotl's configuration, with at least "
            "`behaviors` and `run_dir`"
        )
    if isinstance(block, dict) and "selector" in block:
        raise ConfigError(
            f"{BLOCK}: rows cannot be selected under Axolotl, whose trainer has losses of its own: "
            "remove `selector`"
        )
    return MonitorConfig.parse(block, BLOCK)


def _plain(value: Any) -> Any:
    """Return Axolotl's dictionaries as plain ones."""
    if isinstance(value, dict):
        return {str(key): _plain(own) for key, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, list | tuple) else value
