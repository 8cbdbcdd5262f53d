"""Keys of `riprap watch` that belong to other libraries: TRL, PEFT and bitsandbytes.

Their names, types and defaults are those of `SFTConfig`, `LoraConfig` and `BitsAndBytesConfig`;
Riprap adds a few defaults, and refuses the keys that it must set itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from riprap._config import StrictModel
from riprap.commands._models import SHOWN
from riprap.errors import ConfigError

_ONLY_ANSWERS = "the loss is on the turns of the assistant; see `data`"
_RENAMED_TRAINING = {
    "steps": "max_steps",
    "batch": "per_device_train_batch_size",
    "accumulate": "gradient_accumulation_steps",
    "schedule": "lr_scheduler_type",
    "save_every": "save_steps",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
}
_OWN = {  # keys of SFTConfig that Riprap sets -> what to do instead
    "output_dir": "`run_dir` is the folder of the run",
    "assistant_only_loss": _ONLY_ANSWERS,
    "completion_only_loss": _ONLY_ANSWERS,
    "dataset_text_field": "name the fields of the rows in `data`",
    "dataset_kwargs": "name the fields of the rows in `data`",
    "model_init_kwargs": "set `model` and `quantization`",
    "trust_remote_code": "Riprap runs no code of a model's folder",
    "chat_template_path": "put the chat template into the folder of the tokenizer",
    "eos_token": "set it in the folder of the tokenizer",
    "pad_token": "set it in the folder of the tokenizer",
    "disable_tqdm": "the progress is in the live table",
    "hub_token": "it would stand in the record of the run; log in with `hf auth login`",
    "resume_from_checkpoint": "use `riprap watch CONFIG --resume`",
    "do_train": "`riprap watch` trains",
    "do_eval": "set `eval_data` and `training.eval_strategy`",
    "do_predict": "`riprap watch` trains",
}


class ForeignKeyError(ConfigError):
    """A key that the other library does not know, or a value that it does not take."""


class PassedOn(StrictModel):
    """Keys with types, and further keys that another library knows."""

    model_config = ConfigDict(extra="allow", frozen=True)
    place: ClassVar[str]

    @classmethod
    def known(cls) -> Mapping[str, Any]:
        """Return the types of the keys of the other library, by name."""
        raise NotImplementedError

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        """Return what to do instead of the keys that Riprap sets itself."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        checked, own = dict(document), cls.model_fields
        for key, value in document.items():
            if key in own:
                continue
            name = f"{cls.place}.{key}"
            if key in cls.renamed:
                raise ForeignKeyError(f"key {name!r} is now {cls.renamed[key]!r}")
            if key in cls.refused():
                raise ForeignKeyError(f"key {name!r} cannot be set: {cls.refused()[key]}")
            if key not in cls.known():
                near = difflib.get_close_matches(str(key), [*own, *cls.known()], n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ForeignKeyError(f"unknown key {name!r}{hint}")
            checked[key] = _checked(value, cls.known()[key], name)
        return checked

    def passed_on(self) -> dict[str, Any]:
        """Return the keys that are not Riprap's own."""
        return dict(self.model_extra or {})


def _checked(value: Any, hint: Any, name: str) -> Any:
    """Convert a value to the type of its key: YAML reads `1e-4` as a text and `no` as false."""
    if hint is Any:
        return value
    adapter = TypeAdapter(hint)
    for candidate in (value, *(("no",) if value is False else ())):
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            why = error.errors()[-1]["msg"]
    raise ForeignKeyError(f"key {name!r}: {why}, got {str(value)[:SHOWN]!r}")


class TrainingConfig(PassedOn):
    """Arguments of TRL's SFTConfig; those without a default here have TRL's.

    A killed run can be resumed from checkpoints, one every `save_steps`; None: no checkpoints.
    """

    renamed: ClassVar[dict[str, str]] = _RENAMED_TRAINING
    place: ClassVar[str] = "training"

    learning_rate: float = Field(gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    num_train_epochs: float | None = Field(default=None, gt=0)
    per_device_train_batch_size: int = Field(default=8, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_length: int | None = Field(default=1024, ge=8)
    lr_scheduler_type: str = "constant"
    seed: int = 0
    save_steps: int | None = Field(default=None, ge=1)
    bf16: bool = False
    gradient_checkpointing: bool = False

    @classmethod
    def known(cls) -> Mapping[str, Any]:
        """Return the fields of SFTConfig."""
        from trl import SFTConfig

        return init_fields(SFTConfig)

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        """Return what to do instead of keys that Riprap sets."""
        return _OWN

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise ValueError("max_steps and num_train_epochs both set the length: remove one")
        return self


@cache
def init_fields(arguments: type[Any]) -> dict[str, Any]:
    """Return the types of the fields that a dataclass of arguments takes, by name."""
    hints = get_type_hints(arguments)
    return {f.name: hints[f.name] for f in dataclasses.fields(arguments) if f.init}


class LoraConfig(PassedOn):
    """LoRA adapter; further keys are those of PEFT's LoraConfig.

    Attributes:
        target_modules: names of modules, or `all-linear` for all linear layers but the head.
    """

    renamed: ClassVar[dict[str, str]] = {
        "r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
    }
    place: ClassVar[str] = "lora"

    rank: int = Field(default=32, ge=1)
    alpha: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"

    @classmethod
    def known(cls) -> Mapping[str, Any]:
        """Return the fields of PEFT's LoraConfig."""
        return _lora_fields()

    @classmethod
    def refused(cls) -> Mapping[str, str]:
        """Return what to do instead of keys that Riprap sets."""
        return {"task_type": "it is CAUSAL_LM", "peft_type": "it is LORA"}


@cache
def _lora_fields() -> dict[str, Any]:
    from peft import LoraConfig as PeftLoraConfig

    return {f.name: Any for f in dataclasses.fields(PeftLoraConfig) if f.init}


class QuantizationConfig(PassedOn):
    """Weights in 4 or 8 bits; the keys are those of transformers' BitsAndBytesConfig."""

    place: ClassVar[str] = "quantization"

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: str = "nf4"

    @classmethod
    def known(cls) -> Mapping[str, Any]:
        """Return the arguments of BitsAndBytesConfig."""
        return _quantization_fields()

    @model_validator(mode="after")
    def _check_bits(self) -> Self:
        if self.load_in_4bit == self.load_in_8bit:
            raise ValueError("set one of load_in_4bit and load_in_8bit to true")
        return self


@cache
def _quantization_fields() -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    names = inspect.signature(BitsAndBytesConfig.__init__).parameters
    return {name: Any for name in names if name not in ("self", "kwargs")}
