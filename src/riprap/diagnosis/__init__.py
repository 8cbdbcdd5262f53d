"""Diagnosis: what is examined after the fact."""

from riprap.diagnosis._base import Estimate, Progress, Verdict, estimate
from riprap.diagnosis._forgetting import Forgetting, forgetting
from riprap.diagnosis._weight_sources import (
    Folder,
    Weights,
    at_reference,
    fitting,
    kept,
    move,
    weights_of,
)
from riprap.diagnosis.basins import Basin, Plane, Profile, basin, basin_drift, basin_plane
from riprap.diagnosis.evidence import (
    Decodability,
    Divergence,
    Forced,
    Path,
    decode,
    divergence,
    force,
    path,
    responses_of,
)
from riprap.diagnosis.geometry import (
    Concentration,
    Curvature,
    Redundancy,
    concentration,
    curvature,
    redundancy,
)
from riprap.diagnosis.recovery import Evidence, Recovery, Regained, recover
from riprap.diagnosis.repair import Repair, cheapest, repairs

__all__ = [
    "Basin",
    "Concentration",
    "Curvature",
    "Decodability",
    "Divergence",
    "Estimate",
    "Evidence",
    "Folder",
    "Forced",
    "Forgetting",
    "Path",
    "Plane",
    "Profile",
    "Progress",
    "Recovery",
    "Redundancy",
    "Regained",
    "Repair",
    "Verdict",
    "Weights",
    "at_reference",
    "basin",
    "basin_drift",
    "basin_plane",
    "cheapest",
    "concentration",
    "curvature",
    "decode",
    "divergence",
    "estimate",
    "fitting",
    "force",
    "forgetting",
    "kept",
    "move",
    "path",
    "recover",
    "redundancy",
    "repairs",
    "responses_of",
    "weights_of",
]
