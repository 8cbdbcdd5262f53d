from riprap.diagnosis.geometry._components import (
    HEAD,
    NEURON,
    Unit,
    importance,
    parameters_of,
    units,
)
from riprap.diagnosis.geometry._concentration import Concentration, concentration
from riprap.diagnosis.geometry._curvature import Curvature, curvature
from riprap.diagnosis.geometry._redundancy import Redundancy, redundancy

__all__ = [
    "HEAD",
    "NEURON",
    "Concentration",
    "Curvature",
    "Redundancy",
    "Unit",
    "concentration",
    "curvature",
    "importance",
    "parameters_of",
    "redundancy",
    "units",
]
