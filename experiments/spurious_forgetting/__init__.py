"""Spurious forgetting (2501.13453) on the biographies world, and recovery on SmolLM2."""
