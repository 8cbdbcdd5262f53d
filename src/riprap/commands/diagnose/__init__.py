"""`riprap diagnose`: compare a fine-tuned model with its base, and try repairs on demand.

`diagnose` runs the command with a `DiagnoseConfig`; `measure_scores` does only its first part.
`load_pair` and `select_probes` make its inputs: the two models, and probes that the base passes,
with disjoint examples.
"""

# ruff: noqa: E402
from riprap._extras import EXTRAS, require

require("hf", *EXTRAS["hf"])

from riprap.commands.diagnose._config import DiagnoseConfig
from riprap.commands.diagnose._loading import load_pair
from riprap.commands.diagnose._probes import select_probes
from riprap.commands.diagnose._run import diagnose, measure_scores

__all__ = ["DiagnoseConfig", "diagnose", "load_pair", "measure_scores", "select_probes"]
