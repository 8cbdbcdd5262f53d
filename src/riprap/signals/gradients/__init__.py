"""Signals of gradients and updates; see `riprap.signals`."""

# ruff: noqa: F401
from riprap.signals.gradients._cosine import LossCosine, MarginCosine
from riprap.signals.gradients._fisher import FisherCosine
from riprap.signals.gradients._interference import Interference
from riprap.signals.gradients._layers import LayerInterference
from riprap.signals.gradients._norms import Norms
from riprap.signals.gradients._steep import SteepAlignment, alignment, steep_stack
from riprap.signals.gradients._top_k import TopKCosine, top_coordinates, values_at
