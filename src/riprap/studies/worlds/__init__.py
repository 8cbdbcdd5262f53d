"""Worlds: small causal models with tasks whose truth is known."""

from riprap.studies.worlds.toy import ToyConfig, ToyWorld

__all__ = ["ToyConfig", "ToyWorld"]
