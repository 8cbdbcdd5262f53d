"""Verdicts of recovery on checkpoints whose loss is known."""
