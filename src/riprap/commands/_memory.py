"""Peak memory of a command."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory() -> str:
    """Return the peak memory of this process, formatted with its unit."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS reports bytes, Linux KiB
    formatted = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.2f} GiB"
    if torch.cuda.is_available():
        gib = torch.cuda.max_memory_allocated() / 2**30
        formatted += f", and {gib:.2f} GiB on the accelerator"
    return formatted
