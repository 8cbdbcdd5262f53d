"""Configuration of `riprap fastslow`: model, problems, reward, GRPO, and the population."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from riprap._config import StrictModel
from riprap.commands.watch import LoraConfig, PassedOn, TrainedConfig, init_fields

_OWN = {  # keys of GRPOConfig that Riprap sets -> what to do instead
    "output_dir": "`run_dir` is the folder of the run",
    "model_init_kwargs": "set `model`",
    "disable_tqdm": "the progress is in the live table",
    "hub_token": "it would stand in the record of the run; log in with `hf auth login`",
    "resume_from_checkpoint": "use `riprap fastslow CONFIG --resume`",
    "use_vllm": "fast–slow training generates with transformers",
    "use_transformers_continuous_batching": "fast–slow training generates with transformers",
    "pad_to_multiple_of": "fast–slow training pads prompts to the longest",
    "remove_unused_columns": "rewards need the answers",
    "chat_template_kwargs": "set `data.chat_template_kwargs`",
}


class GRPOTrainingConfig(PassedOn):
    """Arguments of TRL's GRPOConfig; those without a default here have TRL's.

    A killed run can be resumed from checkpoints, one every `save_steps`; None: no checkpoints.
    """

    place: ClassVar[str] = "training"

    learning_rate: float = Field(gt=0)
    max_steps: int = Field(ge=1)
    per_device_train_batch_size: int = Field(default=8, ge=1)
    num_generations: int = Field(default=8, ge=2)
    max_completion_length: int = Field(default=128, ge=1)
    loss_type: str = "cispo"
    epsilon_high: float = 5.0
    lr_scheduler_type: str = "constant"
    save_steps: int | None = Field(default=None, ge=1)
    seed: int = 0
    bf16: bool = False

    @classmethod
    def known(cls) -> Mapping[str, Any]:
        """Return the fields of GRPOConfig."""
        from trl import GRPOConfig

        return init_fields(GRPOConfig)

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        """Return what to do instead of keys that Riprap sets."""
        return _OWN


class PopulationConfig(StrictModel):
    """Population of instructions; see `riprap.fastslow.FastSlow`.

    Attributes:
        sentences: lines that instructions may have, for an `EditGrammar`; none: the model in
            training writes instructions.
    """

    population: tuple[str, ...] = Field(default=("",), min_length=1)
    sentences: tuple[str, ...] = ()
    every: int | None = Field(default=6, ge=1)
    keep: int = Field(default=4, ge=1)
    select: Literal["pareto", "random"] = "pareto"
    problems: int = Field(default=16, ge=1)
    budget: int | None = Field(default=None, ge=1)
    minibatch: int = Field(default=4, ge=1)
    seed: int = 0


class FastSlowConfig(TrainedConfig):
    """Configuration of a monitored run of fast–slow training; see also `MonitorConfig`.

    The response of a row of the data is the answer to a problem.

    Attributes:
        reward: `exact`, `contains` or `number`, or a function of yours as `file.py:function`.
        lora: adapter; None: all parameters are trained.
    """

    reward: str = "exact"
    training: GRPOTrainingConfig
    fastslow: PopulationConfig = PopulationConfig()
    lora: LoraConfig | None = LoraConfig()
