"""Load models and tokenizers: weights from safetensors only, no remote code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riprap._extras import is_installed, require
from riprap._text import first_line
from riprap.errors import ConfigError
from riprap.integrations import smollm2

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")  # a pickle can run code when it is loaded
# Beside the weights in a trainer's checkpoint.
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
SHOWN = 300  # characters of a name, or of another library's error, that a message repeats


def load_model(name: str, quantization: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Load model and tokenizer from a folder, a Hugging Face id, or `smollm2`, in float32.

    Missing or pickled weights are a ConfigError.

    Args:
        quantization: arguments of transformers' BitsAndBytesConfig: weights in 4 or 8 bits.
    """
    require("hf", "transformers")
    if quantization is not None and not is_installed("bitsandbytes"):
        raise ConfigError("quantization needs bitsandbytes: run pip install bitsandbytes")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    source = locate_model(name)
    try:
        options: dict[str, Any] = {"dtype": "float32", "use_safetensors": True}
        options |= {"output_loading_info": True}
        if quantization is not None:
            options["quantization_config"] = BitsAndBytesConfig(**quantization)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        first = first_line(error, type(error).__name__)[:SHOWN]
        raise ConfigError(f"model {name[:SHOWN]!r} cannot be loaded: {first}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would initialize them at random
        raise ConfigError(
            f"model {name!r} cannot be loaded: its files lack {len(missing)} of its weights, such "
            f"as {missing[0]!r}; save the whole model with model.save_pretrained"
        )
    return model, tokenizer


def locate_model(name: str) -> str:
    """Return the folder with this name; without such a folder, the name as a Hugging Face id."""
    try:
        folder = smollm2.ensure_converted() if name == "smollm2" else Path(name).expanduser()
        exists = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, NUL
        message = f"model {name[:SHOWN]!r} cannot be loaded: it is not a valid path"
        raise ConfigError(message) from error
    if not exists and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        prepare = "; make it with `python -m experiments smollm2 --prepare`"
        hint = prepare if folder == smollm2.REFUSING else ""
        raise ConfigError(f"model {name!r}: no such folder{hint}")
    if exists:
        _refuse_pickles(folder)
    return str(folder) if exists else name


def _refuse_pickles(folder: Path) -> None:
    """Name the pickle if all weights are pickled; transformers would only report a missing file."""
    pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
    pickles = [name for name in pickles if name not in _NO_WEIGHTS]
    if pickles and not any((folder / file).is_file() for file in _SAFETENSORS):
        raise ConfigError(
            f"model {str(folder)!r} cannot be loaded: its weights are in {pickles[0]!r}, a pickle, "
            "which can run any code when it is loaded; if you trust the file, save the weights as "
            "safetensors with model.save_pretrained"
        )
