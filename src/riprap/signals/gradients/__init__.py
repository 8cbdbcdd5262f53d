"""Signals of one family; see `riprap.signals`."""
