"""`riprap preflight`: predict what a configured run will break; needs `riprap[hf]`."""

# ruff: noqa: E402, F401
from riprap._extras import EXTRAS, require

require("hf", *EXTRAS["hf"])

from riprap.commands.preflight._run import estimate_preflight, run_preflight
