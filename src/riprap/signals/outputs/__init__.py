"""Signals of one family; see `riprap.signals`."""

from riprap.signals.outputs._kl import KLToStart, kl

__all__ = ["KLToStart", "kl"]
