"""Basins: scores around a checkpoint, along random directions of the weights (VISAGE, 2405.17374).

- `basin` returns a `Basin` with a `Profile` for each behavior.
- `basin_plane` returns a `Plane`; `basin_drift` a basin for each checkpoint of a run.
- `PointEvaluator`, `Judge`: the measurement at one point. `perturbed_weights`, `checksum`: moving
  the weights and restoring them bit by bit.
"""

from riprap.diagnosis.basins._perturbation import checksum, perturbed_weights
from riprap.diagnosis.basins._plane import Plane, basin_drift, basin_plane
from riprap.diagnosis.basins._points import Judge, PointEvaluator
from riprap.diagnosis.basins._profile import Array, Basin, Profile
from riprap.diagnosis.basins._sweep import basin

__all__ = [
    "Array",
    "Basin",
    "Judge",
    "Plane",
    "PointEvaluator",
    "Profile",
    "basin",
    "basin_drift",
    "basin_plane",
    "checksum",
    "perturbed_weights",
]
