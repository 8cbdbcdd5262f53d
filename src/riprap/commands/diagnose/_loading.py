"""Load a pair of models: one in memory, the weights of the other read from its files on demand."""

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

from riprap._text import first_line
from riprap.commands._models import SHOWN, load_model
from riprap.diagnosis import SafetensorsFolder, Weights, interpolate_, matching_names
from riprap.errors import ConfigError
from riprap.evaluation import set_evaluation_mode
from riprap.integrations import smollm2

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Settings of an adapter that must have one of these values; `MergedLoraWeights` reads no others.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    # Other initializations (PiSSA, OLoRA, CorDA, LoftQ) changed the base weights, and the folder
    # does not hold the changed ones.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}


_MERGE = (
    "pass the folder of the merged model (in the session that trained it, or after "
    "PeftModel.from_pretrained: model.merge_and_unload().save_pretrained(folder))"
)


class MergedLoraWeights(Weights):
    """Weights of a base model with a plain LoRA adapter merged in, each computed on access."""

    def __init__(self, base: Weights, adapter: Path) -> None:
        self.base = base
        try:
            settings = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            _require_plain_lora(adapter, settings)
            if not (adapter / ADAPTER).is_file():
                raise FileNotFoundError(f"it contains no {ADAPTER}; save it as safetensors")
            self._file = safe_open(adapter / ADAPTER, framework="pt")  # type: ignore[no-untyped-call]
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"adapter {str(adapter)!r} cannot be read: {error}") from error
        rank = float(settings["r"])
        self.scale = settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank)
        self.transposed = bool(settings.get("fan_in_fan_out"))
        keys = set(self._file.keys())
        self.lora_keys = {
            key.removeprefix("base_model.model.").removesuffix("lora_A.weight") + "weight": key
            for key in keys
            if key.endswith(".lora_A.weight")
        }
        unknown = [key for key in keys if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
        missing = [name for name in self.lora_keys if name not in base]
        if unknown or missing:
            raise ConfigError(
                f"adapter {str(adapter)!r}: {(unknown or missing)[0]!r} is not a LoRA of a weight "
                f"of the base model: {_MERGE}"
            )

    def __getitem__(self, name: str) -> Tensor:
        weight: Tensor = self.base[name]
        if name not in self.lora_keys:
            return weight
        key = self.lora_keys[name]
        right = self._file.get_tensor(key).float()
        left = self._file.get_tensor(key.replace("lora_A", "lora_B")).float()
        delta = self.scale * (left @ right)
        delta = delta.T if self.transposed else delta
        if delta.shape != weight.shape:
            raise ConfigError(
                f"the adapter's delta of {name!r} has shape {tuple(delta.shape)}, and the base "
                f"model's weight {tuple(weight.shape)}: it is not an adapter of this model"
            )
        return weight.float() + delta

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def _require_plain_lora(adapter: Path, settings: dict[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f"adapter {str(adapter)!r} is of type {kind!r}, and only LoRA is supported: {_MERGE}"
        )
    for key, values in _SUPPORTED.items():
        value = settings.get(key)
        if (value.lower() if isinstance(value, str) else value) not in values:
            changed = "; this initialization changes the base weights" * (
                key == "init_lora_weights"
            )
            raise ConfigError(
                f"adapter {str(adapter)!r} has {key}: {settings[key]!r}, which is not supported"
                f"{changed}: {_MERGE}"
            )
    missing = [key for key in ("r", "lora_alpha") if not isinstance(settings.get(key), int | float)]
    if missing:
        raise ConfigError(f"adapter {str(adapter)!r}: {ADAPTER_CONFIG} has no {missing[0]!r}")


@dataclass(frozen=True)
class ModelPair:
    """The tuned model in memory, and the weights of both models in their files."""

    model: Any  # in evaluation mode
    tokenizer: Any
    base: Weights  # by the model's parameter names
    tuned: Weights


def load_pair(base: str, tuned: str) -> ModelPair:
    """Load the tuned model once, and open the weights of both; they must differ in weights only."""
    base_folder, tuned_folder = find_folder(base), find_folder(tuned)
    for folder in (base_folder, tuned_folder):
        _refuse_quantized(folder)
    if (tuned_folder / ADAPTER_CONFIG).is_file():
        model, tokenizer = load_model(str(base_folder))
        base_weights = open_weights(base_folder, model)
        tuned_weights: Weights = MergedLoraWeights(base_weights, tuned_folder)
        names = matching_names(model, tuned_weights)
        interpolate_(model, tuned_weights, tuned_weights, 1.0, names)
    else:
        model, tokenizer = load_model(str(tuned_folder))
        base_weights = open_weights(base_folder, model)
        tuned_weights = open_weights(tuned_folder, model)
        _require_same_vocabulary(base_folder, tuned_folder)
    try:
        matching_names(model, base_weights)
    except ConfigError as error:
        raise ConfigError(f"{tuned!r} is not a fine-tuned version of {base!r}: {error}") from error
    if all(torch.equal(p.detach(), base_weights[n].to(p)) for n, p in model.named_parameters()):
        raise ConfigError(
            f"nothing changed: {tuned!r} has the same weights as {base!r}; pass the model before "
            "tuning first, and the one after it second"
        )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    set_evaluation_mode(model.to(device or "cpu"))
    return ModelPair(model, tokenizer, base_weights, tuned_weights)


def find_folder(name: str) -> Path:
    """Return the folder of a model: a local one, or the cached download of a hub id."""
    shown = name[:SHOWN]
    try:
        folder = smollm2.ensure_converted() if name == "smollm2" else Path(name).expanduser()
        exists = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"model {shown!r} cannot be loaded: it is not a path") from error
    if not exists:
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise ConfigError(f"model {shown!r}: no such folder")
        try:
            patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
            return Path(snapshot_download(name, allow_patterns=patterns))
        except Exception as error:
            first = first_line(error, type(error).__name__)[:SHOWN]
            why = f"model {shown!r} is neither a folder nor on the hub: {first}"
            raise ConfigError(why) from error
    if not any((folder / file).is_file() for file in ("config.json", ADAPTER_CONFIG)):
        raise ConfigError(
            f"model {shown!r} contains neither config.json nor {ADAPTER_CONFIG}: is it a saved "
            "model?"
        )
    return folder


def _refuse_quantized(folder: Path) -> None:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        quantized = settings.get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return  # an adapter; or `load_model` says what is wrong
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else ""
        raise ConfigError(
            f"the weights in {str(folder)!r} are quantized ({method}), and diagnose compares and "
            "mixes weights: pass the model that was quantized, or save model.dequantize()"
        )


def open_weights(folder: Path, model: Any) -> SafetensorsFolder:
    """Open the weights in a folder under the model's parameter names."""
    try:
        files = SafetensorsFolder(folder)
    except SafetensorError as error:
        raise ConfigError(f"the weights in {str(folder)!r} cannot be read: {error}") from error
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    short = {name: name.removeprefix(prefix) for name, _ in model.named_parameters()}
    stored = {name: s for name, s in short.items() if name not in files and s in files}
    return SafetensorsFolder(folder, stored)


def _require_same_vocabulary(base_folder: Path, tuned_folder: Path) -> None:
    """Raise a ConfigError if the two tokenizers have different vocabularies."""
    try:
        texts = [(f / "tokenizer.json").read_bytes() for f in (base_folder, tuned_folder)]
    except OSError:
        return  # a base without a tokenizer uses that of the tuned model
    vocabularies = [json.loads(text).get("model", {}).get("vocab") for text in texts]
    if vocabularies[0] != vocabularies[1]:
        raise ConfigError(
            f"{str(base_folder)!r} and {str(tuned_folder)!r} have tokenizers with different "
            "vocabularies: they read the same text as different tokens"
        )
