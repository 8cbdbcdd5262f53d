"""Loading a model that somebody else may have made: safetensors alone, and none of its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from riprap.errors import ConfigError
from riprap.integrations import smollm2

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")  # reading one runs what it says
SHOWN = 300  # characters of another library's error that are repeated


def load_model(name: str) -> tuple[Any, Any]:
    """Model and tokenizer from a folder, a hub id, or `smollm2`.

    Raises:
        ConfigError: nothing can be loaded by that name, only pickled weights, or not all weights.
    """
    source = _source(name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype="float32",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:SHOWN]
        raise ConfigError(f"model {name[:SHOWN]!r} cannot be loaded: {first}") from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:  # they would be random numbers, and the model another one
        raise ConfigError(
            f"model {name!r} cannot be loaded: its files lack {len(missing)} of its weights, such "
            f"as {missing[0]!r}; save the whole model with model.save_pretrained"
        )
    return model, tokenizer


def _source(name: str) -> str:
    """What to load: the folder of that name where there is one, otherwise a hub id."""
    try:
        folder = smollm2.ensure() if name == "smollm2" else Path(name).expanduser()
        here = folder.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, NUL
        raise ConfigError(f"model {name[:SHOWN]!r} cannot be loaded: it is no path") from error
    if not here and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        hint = (
            "; make it with `riprap study smollm2 --prepare`" if folder == smollm2.REFUSING else ""
        )
        raise ConfigError(f"model {name!r}: no such folder{hint}")
    if here:
        _refuse_pickles(folder)
    return str(folder) if here else name


def _refuse_pickles(folder: Path) -> None:
    """Say what is wrong where all weights are pickled; the library only misses a file."""
    pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
    if pickles and not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model {str(folder)!r} cannot be loaded: its weights are in {pickles[0]!r}, a pickle, "
            "which can run any code when it is read; save them as safetensors, by "
            "model.save_pretrained where you trust the file"
        )
