"""Geometry: how many directions, which layers, and which components a behavior depends on.

- `curvature` returns a `Curvature`: the top of the Gauss–Newton spectrum, and its trace.
- `concentration` returns a `Concentration`: effective ranks of the margins' Jacobian.
- `redundancy` returns a `Redundancy`: scores after directions of the stream are ablated.
- `find_components` returns each `Component` (`HEAD` or `NEURON`); `component_importance`,
  `mean_ablation` and `parameter_masks` work on components.
"""

from riprap.diagnosis.geometry._components import (
    HEAD,
    NEURON,
    Component,
    component_importance,
    find_components,
    mean_ablation,
    parameter_masks,
)
from riprap.diagnosis.geometry._concentration import Concentration, concentration
from riprap.diagnosis.geometry._curvature import Curvature, curvature
from riprap.diagnosis.geometry._redundancy import Redundancy, redundancy

__all__ = [
    "HEAD",
    "NEURON",
    "Component",
    "Concentration",
    "Curvature",
    "Redundancy",
    "component_importance",
    "concentration",
    "curvature",
    "find_components",
    "mean_ablation",
    "parameter_masks",
    "redundancy",
]
