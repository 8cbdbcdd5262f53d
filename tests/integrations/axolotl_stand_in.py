"""What a plugin meets in Axolotl 0.18: its base class, and the order of the calls.

Written after reading `integrations/base.py`, `integrations/config.py`, `cli/config.py` and
`core/builders/`; no part of Axolotl is in here. Axolotl itself is not installed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, create_model
from transformers import Trainer

QUIET = ["get_training_args_mixin", "get_lora_config_kwargs", "load_datasets", "pre_model_load"]
QUIET += ["post_model_build", "pre_lora_load", "post_lora_load", "post_model_load"]
QUIET += ["get_trainer_cls", "post_trainer_create", "get_training_args", "create_optimizer"]
QUIET += ["create_lr_scheduler", "post_train", "post_train_unload", "get_input_args", "register"]
LISTS = ["add_callbacks_pre_trainer", "add_callbacks_post_trainer"]


class BasePlugin:
    """All hooks do nothing; those of callbacks return an empty list."""


for _name in QUIET:
    setattr(BasePlugin, _name, lambda self, *_, **__: None)
for _name in LISTS:
    setattr(BasePlugin, _name, lambda self, *_, **__: [])


class Config(dict[str, Any]):
    """Axolotl's dictionary: a missing key is None, and keys are attributes as well."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({key: self._of(value) for key, value in values.items()})

    @classmethod
    def _of(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return cls(value)
        return [cls._of(own) for own in value] if isinstance(value, list) else value

    def to_dict(self) -> dict[str, Any]:
        return {key: self._back(value) for key, value in self.items()}

    @classmethod
    def _back(cls, value: Any) -> Any:
        if isinstance(value, Config):
            return value.to_dict()
        return [cls._back(own) for own in value] if isinstance(value, list) else value

    def __missing__(self, key: str) -> None:
        return None

    def __getattr__(self, key: str) -> Any:
        return self[key]


class InputConfig(BaseModel):
    """Some keys of Axolotl; others are dropped without a word, as Axolotl does."""

    base_model: str
    plugins: list[str] | None = None
    resume_from_checkpoint: str | None = None


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python find the stand-in as `axolotl`."""
    base: Any = ModuleType("axolotl.integrations.base")
    base.BasePlugin = BasePlugin
    BasePlugin.__module__ = base.__name__
    for module in (ModuleType("axolotl"), ModuleType("axolotl.integrations"), base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "riprap.integrations.axolotl", raising=False)


def load(document: dict[str, Any]) -> tuple[Config, list[Any]]:
    """Load the plugins by name, let them see the configuration, and validate it."""
    cfg, plugins = Config(document), []
    for name in cfg["plugins"] or []:
        module, _, kind = name.rpartition(".")
        try:
            plugins.append(getattr(importlib.import_module(module), kind)())
        except ImportError as error:
            print(f"Error: {error}")  # and on it goes
    for plugin in plugins:
        plugin.register(cfg)
    parts = [InputConfig]
    for plugin in plugins:
        if (name := plugin.get_input_args()) is not None:
            module, _, kind = name.rpartition(".")
            parts.append(getattr(importlib.import_module(module), kind))
    merged = create_model("AxolotlInputConfig", __base__=tuple(parts))
    return Config(merged(**cfg.to_dict()).model_dump(exclude_none=True)), plugins


def build(cfg: Config, plugins: list[Any], make: Any, model: Any) -> Trainer:
    """Build the trainer; `make` gets the callbacks that stand before it."""
    before = [one for own in plugins for one in own.add_callbacks_pre_trainer(cfg, model)]
    trainer = make(before)
    for plugin in plugins:
        for callback in plugin.add_callbacks_post_trainer(cfg, trainer):
            trainer.add_callback(callback)
        plugin.post_trainer_create(cfg, trainer)
    return trainer
