from riprap.diagnosis.geometry._components import (
    HEAD,
    NEURON,
    Component,
    component_importance,
    parameter_masks,
    find_components,
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
    "Component",
    "concentration",
    "curvature",
    "component_importance",
    "parameter_masks",
    "redundancy",
    "find_components",
]
