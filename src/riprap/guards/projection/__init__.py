from riprap.guards.projection._agem import AGEM
from riprap.guards.projection._gem import GEM
from riprap.guards.projection._gpm import GPM, TwoSidedGPM
from riprap.guards.projection._ogd import OGD
from riprap.guards.projection._safegrad import SafeGrad
from riprap.guards.projection._torchjd_weightings import PCGrad, UPGrad
from riprap.guards.projection._update_projection import UpdateProjection

__all__ = [
    "AGEM",
    "GEM",
    "GPM",
    "OGD",
    "PCGrad",
    "SafeGrad",
    "TwoSidedGPM",
    "UPGrad",
    "UpdateProjection",
]
