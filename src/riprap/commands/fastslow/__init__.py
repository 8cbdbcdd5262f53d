"""`riprap fastslow`: train by fast–slow GRPO as a configuration file describes, under a monitor.

Needs `riprap[hf,fastslow]`.

- `FastSlowConfig`, `PopulationConfig`, `GRPOTrainingConfig`: the configuration.
- `run_fast_slow`: the command; `load_reward`: the reward that a configuration names.
"""

# ruff: noqa: E402, F401
from riprap._extras import EXTRAS, require

require("hf", *EXTRAS["hf"])
require("fastslow", *EXTRAS["fastslow"])

from riprap.commands.fastslow._config import FastSlowConfig, GRPOTrainingConfig, PopulationConfig
from riprap.commands.fastslow._reward import load_reward
from riprap.commands.fastslow._run import POPULATION_FILE, run_fast_slow
