"""Signals of the model's outputs; see `riprap.signals`."""

from riprap.signals.outputs._kl import KLToStart, kl

__all__ = ["KLToStart", "kl"]
