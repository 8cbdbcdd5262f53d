"""Diagnosis: what is examined after the fact."""

from riprap.diagnosis.base import Estimate, Verdict
from riprap.diagnosis.basin import basin
from riprap.diagnosis.basin_plane import Plane, basin_drift, basin_plane
from riprap.diagnosis.basin_profile import Basin, Profile
from riprap.diagnosis.concentration import Concentration, concentration
from riprap.diagnosis.curvature import Curvature, curvature
from riprap.diagnosis.decode import Decodability, decode
from riprap.diagnosis.divergence import Divergence, divergence
from riprap.diagnosis.force import Forced, force
from riprap.diagnosis.forgetting import Forgetting, forgetting
from riprap.diagnosis.path import Path, path
from riprap.diagnosis.recovery import Recovery, Regained, recover
from riprap.diagnosis.redundancy import Redundancy, redundancy
from riprap.diagnosis.repairs import Repair, cheapest, repairs
from riprap.diagnosis.responses import responses_of
from riprap.diagnosis.verdict import Evidence
from riprap.diagnosis.weights import Folder

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
    "Recovery",
    "Redundancy",
    "Regained",
    "Repair",
    "Verdict",
    "basin",
    "basin_drift",
    "basin_plane",
    "cheapest",
    "concentration",
    "curvature",
    "decode",
    "divergence",
    "force",
    "forgetting",
    "path",
    "recover",
    "redundancy",
    "repairs",
    "responses_of",
]
