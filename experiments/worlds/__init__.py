"""Worlds: small causal models with tasks whose truth is known."""

from experiments.worlds.biographies import Biographies, BiographiesConfig
from experiments.worlds.facts import FactsConfig, FactsWorld
from riprap.toy import ToyConfig, ToyWorld

__all__ = ["Biographies", "BiographiesConfig", "FactsConfig", "FactsWorld", "ToyConfig", "ToyWorld"]
