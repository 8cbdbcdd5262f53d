"""Diagnosis: examine a checkpoint after training. The public names, by subpackage:

- `recovery`: relearn a few examples on a copy and classify the loss. `recover` returns a `Recovery`
  with a `Verdict`, its `RecoveryEvidence` and a curve of `RecoveryPoint` objects.
- `evidence`: examinations without training. `linear_decodability` (`Decodability`),
  `prefix_forcing` (`PrefixForcing`), `linear_path` (`LinearPath`, `PathProfile`), `divergence`
  (`Divergence`); `greedy_responses`.
- `basins`: scores around a checkpoint. `basin` (`Basin`, `Profile`), `basin_plane` (`Plane`),
  `basin_drift`.
- `geometry`: the directions, heads and neurons that a behavior depends on. `curvature`
  (`Curvature`), `concentration` (`Concentration`), `redundancy` (`Redundancy`); more in
  `riprap.diagnosis.geometry`.
- `repair`: ways to restore lost behaviors, and their cost. `compare_repairs` (`Repair`),
  `cheapest_repair`, `apply_repair`, `merged_weights`.

Beside them: `forgetting` (`Forgetting`), metrics of a sequence of tasks; `BehaviorDiagnosis`
and `Diagnosis`, the results of `riprap diagnose`, with `has_loss`; `Estimate` and `estimate`, a
mean with its interval; `Progress`. Weights of other checkpoints: `SafetensorsFolder`, `Weights`,
`reference_model`, `restore_weights`, `matching_names`, `named_weights`, `interpolate_`.
"""

from riprap.diagnosis._base import Estimate, Progress, Verdict, estimate
from riprap.diagnosis._forgetting import Forgetting, forgetting
from riprap.diagnosis._result import BehaviorDiagnosis, Diagnosis, has_loss
from riprap.diagnosis._weight_sources import (
    SafetensorsFolder,
    Weights,
    interpolate_,
    matching_names,
    named_weights,
    reference_model,
    restore_weights,
)
from riprap.diagnosis.basins import Basin, Plane, Profile, basin, basin_drift, basin_plane
from riprap.diagnosis.evidence import (
    Decodability,
    Divergence,
    LinearPath,
    PathProfile,
    PrefixForcing,
    divergence,
    greedy_responses,
    linear_decodability,
    linear_path,
    prefix_forcing,
)
from riprap.diagnosis.geometry import (
    Concentration,
    Curvature,
    Redundancy,
    concentration,
    curvature,
    redundancy,
)
from riprap.diagnosis.recovery import Recovery, RecoveryEvidence, RecoveryPoint, recover
from riprap.diagnosis.repair import (
    Repair,
    apply_repair,
    cheapest_repair,
    compare_repairs,
    merged_weights,
)

__all__ = [
    "Basin",
    "BehaviorDiagnosis",
    "Concentration",
    "Curvature",
    "Decodability",
    "Diagnosis",
    "Divergence",
    "Estimate",
    "Forgetting",
    "LinearPath",
    "PathProfile",
    "Plane",
    "PrefixForcing",
    "Profile",
    "Progress",
    "Recovery",
    "RecoveryEvidence",
    "RecoveryPoint",
    "Redundancy",
    "Repair",
    "SafetensorsFolder",
    "Verdict",
    "Weights",
    "apply_repair",
    "basin",
    "basin_drift",
    "basin_plane",
    "cheapest_repair",
    "compare_repairs",
    "concentration",
    "curvature",
    "divergence",
    "estimate",
    "forgetting",
    "greedy_responses",
    "has_loss",
    "interpolate_",
    "linear_decodability",
    "linear_path",
    "matching_names",
    "merged_weights",
    "named_weights",
    "prefix_forcing",
    "recover",
    "redundancy",
    "reference_model",
    "restore_weights",
]
