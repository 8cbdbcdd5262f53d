from riprap.diagnosis.basins._perturbation import checksum, ground
from riprap.diagnosis.basins._plane import Plane, basin_drift, basin_plane
from riprap.diagnosis.basins._points import Judge, Lookout
from riprap.diagnosis.basins._profile import Array, Basin, Profile
from riprap.diagnosis.basins._sweep import basin

__all__ = [
    "Array",
    "Basin",
    "Judge",
    "Lookout",
    "Plane",
    "Profile",
    "basin",
    "basin_drift",
    "basin_plane",
    "checksum",
    "ground",
]
