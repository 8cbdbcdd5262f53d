"""Check that an optional dependency is installed, and name the extra that installs it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from riprap.errors import MissingExtraError

EXTRAS = {  # extra -> modules that it installs
    "cli": ("typer", "rich"),
    "hf": ("transformers", "trl", "peft", "accelerate", "datasets"),
    "report": ("altair", "vl_convert", "jinja2", "pandas"),
    "torchjd": ("torchjd",),
    "lightning": ("lightning",),
    "smollm2": ("gguf",),
    "sae": ("sae_lens",),
    "dashboard": ("starlette", "uvicorn"),
    "fastslow": ("trl", "gepa"),
    "evals": ("lm_eval",),
}


def require(extra: str, *modules: str) -> None:
    """Check that the modules of an extra can be imported; import none of them.

    Raises:
        MissingExtraError: the first module that is not installed, with the `pip install` for it.
    """
    for module in modules:
        if not is_installed(module):
            raise MissingExtraError(f"{module} is not installed: run pip install 'riprap[{extra}]'")


def is_installed(module: str) -> bool:
    """Return True if a top-level module can be imported; do not import it."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
