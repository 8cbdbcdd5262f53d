"""Verdicts of recovery on SmolLM2 that was taught made-up facts."""
