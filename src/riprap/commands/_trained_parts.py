"""Tensors that a training would train, by part of a model, without loading its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riprap._text import first_line
from riprap.commands._models import SHOWN, locate_model
from riprap.errors import ConfigError

_BLOCK = re.compile(r"^(.*?\.)?(\d+)\.")
_LORA_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Part:
    """Tensors of one part of a model.

    Attributes:
        name: embedding, head, a block, the experts of a block, or other.
        trained, tensors: number of tensors that are trained, and of all.
        parameters: number of trained parameters.
    """

    name: str
    trained: int
    tensors: int
    parameters: int


@dataclass(frozen=True)
class TrainedParts:
    """Tensors that one kind of training trains, by part.

    Attributes:
        kind: the training, in words.
        parts: in the order of the model.
        tied: True if embedding and head are one tensor.
    """

    kind: str
    parts: list[Part]
    tied: bool = False

    def lines(self) -> list[str]:
        """Return one line about the whole and one about each part; equal blocks share a line."""
        trained, tensors = (sum(getattr(p, k) for p in self.parts) for k in ("trained", "tensors"))
        parameters = sum(part.parameters for part in self.parts)
        first = f"{self.kind}: trains {trained} of {tensors} tensors, {parameters:,} parameters"
        return [first, *(f"  {line}" for line in self._part_lines())]

    def _part_lines(self) -> Iterator[str]:
        def alike(part: Part) -> Any:
            return _numberless(part.name), part.trained, part.tensors, part.parameters

        for _, group in groupby(self.parts, alike):
            same = list(group)
            part, each = same[0], " each" if len(same) > 1 else ""
            name = part.name if len(same) == 1 else f"{part.name} … {same[-1].name}"
            tied = " (tied to the head)" if part.name == "embedding" and self.tied else ""
            state = f"{part.trained} of {part.tensors} tensors{each}"
            count = f", {part.parameters:,} parameters{each}" if part.trained else ", frozen"
            yield f"{name}{tied}: {state}{count}"


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def trained_parts(kind: str, model: nn.Module) -> TrainedParts:
    """Count the trained tensors of a model by part."""
    special = _special_tensors(model)
    found: dict[str, list[tuple[bool, int]]] = {}
    for name, parameter in model.named_parameters():
        part = special.get(id(parameter)) or _part_of(name.removeprefix(_LORA_PREFIX))
        found.setdefault(part, []).append((parameter.requires_grad, parameter.numel()))
    parts = [
        Part(name, sum(yes for yes, _ in rows), len(rows), sum(n for yes, n in rows if yes))
        for name, rows in found.items()
    ]
    kinds = [_numberless(part.name) for part in parts]  # blocks first, then their experts
    parts.sort(key=lambda part: kinds.index(_numberless(part.name)))
    return TrainedParts(kind, parts, tied=_is_tied(model))


def _special_tensors(model: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for part, get in (("head", "get_output_embeddings"), ("embedding", "get_input_embeddings")):
        module = getattr(model, get, lambda: None)()
        if isinstance(module, nn.Module):
            names |= {id(parameter): part for parameter in module.parameters()}
    return names


def _is_tied(model: Any) -> bool:
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    weights = [getattr(end, "weight", None) for end in ends]
    return weights[0] is not None and weights[0] is weights[1]


def _part_of(name: str) -> str:
    block = _BLOCK.match(name)
    if block is None:
        return "other"
    return f"block {block[2]}, experts" if ".experts." in name else f"block {block[2]}"


def examine_model(name: str) -> list[TrainedParts]:
    """Say what full fine-tuning and the default LoRA adapter of `riprap watch` would train.

    The model is built from its configuration; no weights are read.
    """
    from riprap.commands.watch import LoraConfig, lora_config

    quantized = _quantization(name)
    results = []
    if quantized is None:
        results.append(trained_parts("full fine-tuning (`lora: null`)", _empty_model(name)))
    kind = "LoRA on all linear layers (the default)"
    kind += f" over weights in {quantized}, which are frozen" if quantized else ""
    return [*results, _with_lora(kind, name, lora_config(LoraConfig()))]


def examine_config(file: Path) -> list[TrainedParts]:
    """Say what the training of a configuration would train."""
    from riprap.commands.watch import WatchConfig, check_config, lora_config

    config = WatchConfig.load(file)
    check_config(config)
    if config.lora is None:
        if (quantized := _quantization(config.model)) is not None:
            raise ConfigError(f"weights in {quantized} cannot be trained: keep `lora`")
        return [trained_parts("full fine-tuning", _empty_model(config.model))]
    bits = config.quantization
    kind = "LoRA" if bits is None else f"LoRA over {4 if bits.load_in_4bit else 8}-bit weights"
    return [_with_lora(f"{kind} as configured", config.model, lora_config(config.lora))]


def _with_lora(kind: str, name: str, adapter: Any) -> TrainedParts:
    from peft import get_peft_model

    try:
        with torch.device("meta"):
            return trained_parts(kind, get_peft_model(_empty_model(name), adapter))
    except ValueError as error:  # no module has the name of a target
        first = str(error).strip().splitlines()[0][:SHOWN]
        raise ConfigError(
            f"model {name[:SHOWN]!r}: no LoRA adapter can be added: {first}"
        ) from error


def _load_config(name: str) -> Any:
    from transformers import AutoConfig

    return _named(name, lambda: AutoConfig.from_pretrained(locate_model(name)))


def _quantization(name: str) -> str | None:
    settings = getattr(_load_config(name), "quantization_config", None)
    if settings is None:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    return str(settings.get("quant_method", "a quantized form"))


def _empty_model(name: str) -> Any:
    from transformers import AutoModelForCausalLM

    config = _load_config(name)
    config.quantization_config = None
    with torch.device("meta"):
        return _named(name, lambda: AutoModelForCausalLM.from_config(config))


def _named(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except ConfigError:
        raise
    except Exception as error:
        first = first_line(error, type(error).__name__)[:SHOWN]
        raise ConfigError(f"model {name[:SHOWN]!r} cannot be examined: {first}") from error
