"""What makes runs faster and changes no result but its rounding."""

from __future__ import annotations

from typing import Any


def keep_head_fast(model: Any) -> None:
    """Copy what a transformers model passes to its head, where that is a slice of the positions.

    PyTorch multiplies such a slice by the head's matrix row by row, and ten times as long on a CPU.
    """
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0].contiguous(),)
    )
