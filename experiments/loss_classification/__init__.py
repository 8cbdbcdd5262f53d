"""Verdicts of recovery on checkpoints of which it is known what they lost."""
