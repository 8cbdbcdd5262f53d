"""Worlds: small causal models with tasks whose truth is known."""

from riprap.studies.worlds.biographies import Biographies, BiographiesConfig
from riprap.studies.worlds.facts import FactsConfig, FactsWorld
from riprap.studies.worlds.toy import ToyConfig, ToyWorld

__all__ = ["Biographies", "BiographiesConfig", "FactsConfig", "FactsWorld", "ToyConfig", "ToyWorld"]
