from riprap.toy._tasks import Examples, Vocabulary
from riprap.toy._training import CACHE, Progress, batches, cached, fingerprint
from riprap.toy._world import OLD, ToyConfig, ToyWorld

__all__ = [
    "CACHE",
    "OLD",
    "Examples",
    "Progress",
    "ToyConfig",
    "ToyWorld",
    "Vocabulary",
    "batches",
    "cached",
    "fingerprint",
]
