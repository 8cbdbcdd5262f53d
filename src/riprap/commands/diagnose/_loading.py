"""The two models: one in memory, the other's weights read from its files one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from riprap.commands._models import SHOWN, load_model
from riprap.diagnosis import Folder, Weights, fitting, move
from riprap.errors import ConfigError
from riprap.integrations import smollm2

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What an adapter may have, by its configuration, and the only value of it that is read here.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


class Adapted(Weights):
    """The weights of a model with a LoRA adapter merged into them, each made when asked for.

    Raises:
        ConfigError: an adapter of another kind, or of a weight that is not there.
    """

    def __init__(self, base: Weights, adapter: Path) -> None:
        self.base = base
        try:
            settings = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            _refuse_other(adapter, settings)
            self._file = safe_open(adapter / ADAPTER, framework="pt")  # type: ignore[no-untyped-call]
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"adapter {str(adapter)!r} cannot be read: {error}") from error
        rank = float(settings["r"])
        self.scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
        self.turned = bool(settings.get("fan_in_fan_out"))
        keys = set(self._file.keys())
        self.changed = {
            key.removeprefix("base_model.model.").removesuffix("lora_A.weight") + "weight": key
            for key in keys
            if key.endswith(".lora_A.weight")
        }
        strange = [key for key in keys if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
        lost = [name for name in self.changed if name not in base]
        if strange or lost:
            raise ConfigError(
                f"adapter {str(adapter)!r}: {(strange or lost)[0]!r} is no LoRA of a weight of the "
                "base model; give the merged model's folder"
            )

    def __getitem__(self, name: str) -> Tensor:
        weight: Tensor = self.base[name]
        if name not in self.changed:
            return weight
        key = self.changed[name]
        right = self._file.get_tensor(key).float()
        left = self._file.get_tensor(key.replace("lora_A", "lora_B")).float()
        change = self.scale * (left @ right)
        change = change.T if self.turned else change
        if change.shape != weight.shape:
            raise ConfigError(
                f"the adapter's change of {name!r} has shape {tuple(change.shape)}, and the base "
                f"model's weight {tuple(weight.shape)}: it is no adapter of this model"
            )
        return weight.float() + change

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def _refuse_other(adapter: Path, settings: dict[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f"adapter {str(adapter)!r} is of kind {kind!r}, and only LoRA can be read here; give "
            "the merged model's folder"
        )
    for key, values in _PLAIN.items():
        if settings.get(key) not in values:
            raise ConfigError(
                f"adapter {str(adapter)!r} has {key}: {settings[key]!r}, which cannot be read "
                "here; give the merged model's folder"
            )


@dataclass(frozen=True)
class Pair:
    """The model after in memory, and the weights of both in their files.

    Attributes:
        model: as it was tuned, in evaluation mode.
        base, tuned: weights by the model's names.
    """

    model: Any
    tokenizer: Any
    base: Weights
    tuned: Weights


def load_pair(base: str, tuned: str) -> Pair:
    """Load the model after, once, and find the weights of both.

    Raises:
        ConfigError: one cannot be loaded, they are not of one kind, or they are the same.
    """
    before, after = folder_of(base), folder_of(tuned)
    if (after / ADAPTER_CONFIG).is_file():
        model, tokenizer = load_model(str(before))
        start = weights_in(before, model)
        end: Weights = Adapted(start, after)
        move(model, end, end, 1.0, fitting(model, end))
    else:
        model, tokenizer = load_model(str(after))
        start, end = weights_in(before, model), weights_in(after, model)
        _refuse_strangers(before, after)
    _same_kind(model, start, base, tuned)
    if all(torch.equal(p.detach(), start[n].to(p)) for n, p in model.named_parameters()):
        raise ConfigError(
            f"nothing changed: {tuned!r} has the same weights as {base!r}; name the model before "
            "tuning first, and the one after it second"
        )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return Pair(model.to(device or "cpu").eval(), tokenizer, start, end)


def folder_of(name: str) -> Path:
    """The folder in which a model lies: that of this name, or where the hub's is kept.

    Raises:
        ConfigError: neither is there, or there is no model in it.
    """
    shown = name[:SHOWN]
    try:
        folder = smollm2.ensure() if name == "smollm2" else Path(name).expanduser()
        here = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"model {shown!r} cannot be loaded: it is no path") from error
    if not here:
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ConfigError(f"model {shown!r}: no such folder")
        try:
            wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
            return Path(snapshot_download(name, allow_patterns=wanted))
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:SHOWN]
            raise ConfigError(f"model {shown!r} is no folder, nor on the hub: {first}") from error
    if not any((folder / file).is_file() for file in ("config.json", ADAPTER_CONFIG)):
        raise ConfigError(
            f"model {shown!r}: there is no config.json nor {ADAPTER_CONFIG} in it: is it a saved "
            "model?"
        )
    return folder


def weights_in(folder: Path, model: Any) -> Folder:
    """The weights in a folder by the names that the model has for them.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    try:
        files = Folder(folder)
    except SafetensorError as error:
        raise ConfigError(f"the weights in {str(folder)!r} cannot be read: {error}") from error
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    other = {}
    for name, _ in model.named_parameters():
        bare = name.removeprefix(prefix)
        if name not in files and bare in files:
            other[name] = bare
    return Folder(folder, other)


def _same_kind(model: Any, start: Weights, base: str, tuned: str) -> None:
    """Whether the weights of the model before fit the model after."""
    try:
        fitting(model, start)
    except ConfigError as error:
        raise ConfigError(f"{base!r} and {tuned!r} are not one model, tuned: {error}") from error


def _refuse_strangers(before: Path, after: Path) -> None:
    """Whether both read a text as the same tokens."""
    try:
        texts = [(folder / "tokenizer.json").read_bytes() for folder in (before, after)]
    except OSError:
        return  # a base without a tokenizer of its own is read by that of the other
    vocabularies = [json.loads(text).get("model", {}).get("vocab") for text in texts]
    if vocabularies[0] != vocabularies[1]:
        raise ConfigError(
            f"{str(before)!r} and {str(after)!r} have tokenizers of different vocabularies: what "
            "the one reads is not what the other reads"
        )
