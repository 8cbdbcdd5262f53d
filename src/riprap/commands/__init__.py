"""The work behind each command of `riprap`; needs `riprap[cli]`.

- `run_demo`, `demo_page`, `demo_folder`: `riprap demo`.
- `examine`: `riprap doctor`.
- `watch`, `fastslow`, `select`, `diagnose`: packages of the commands of that name; they need
  `riprap[hf]`.
- `load_model`: load a model safely.
"""

# ruff: noqa: E402
from riprap._extras import EXTRAS, require

require("cli", *EXTRAS["cli"])

from riprap.commands._demo import demo_folder, demo_page, run_demo
from riprap.commands._doctor import examine
from riprap.commands._models import load_model

__all__ = ["demo_folder", "demo_page", "examine", "load_model", "run_demo"]
