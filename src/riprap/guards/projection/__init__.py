"""Projection guards: remove the part of a step that conflicts with protected behaviors.

- Combine the gradient with protected gradients (gradient surgery): `AGEM`, `GEM`, `PCGrad`,
  `UPGrad`. `UpdateProjection` does the same with the optimizer's update.
- Keep the step orthogonal to stored directions: `OGD` (gradients of outputs), `GPM` and
  `TwoSidedGPM` (inputs, and output gradients, of each layer).
- `SafeAnchor` projects away from the leading Fisher directions of each tensor, and repairs.
- `SafeGrad` projects away from changing the initial answers and pulls toward them.

`PCGrad` and `UPGrad` need the extra `torchjd`.
"""

from riprap.guards.projection._agem import AGEM
from riprap.guards.projection._gem import GEM
from riprap.guards.projection._gpm import GPM, TwoSidedGPM
from riprap.guards.projection._ogd import OGD
from riprap.guards.projection._safe_anchor import SafeAnchor
from riprap.guards.projection._safegrad import SafeGrad
from riprap.guards.projection._torchjd_weightings import PCGrad, UPGrad
from riprap.guards.projection._update_projection import UpdateProjection

__all__ = [
    "AGEM",
    "GEM",
    "GPM",
    "OGD",
    "PCGrad",
    "SafeAnchor",
    "SafeGrad",
    "TwoSidedGPM",
    "UPGrad",
    "UpdateProjection",
]
