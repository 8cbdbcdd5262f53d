"""`riprap watch`: fine-tune as a configuration file describes, under a monitor; needs `riprap[hf]`.

- `WatchConfig`, `DataConfig`, `LoraConfig`: the configuration.
- `run_watch`, `estimate_cost`, `print_cost`: the command and its `--dry-run`.
- `check_config`, `build_guard`, `build_selector`: checks and parts of a configuration.
- `prepare`, `TrainingRun`, `summarize_run`: the steps of `run_watch`.
- `load_model`, `load_rows`, `lora_config`, `sft_config`, `make_step_fn`, …: parts to reuse.
"""

# ruff: noqa: E402, F401
from riprap._extras import EXTRAS, require

require("hf", *EXTRAS["hf"])

from riprap.commands._data import DataConfig, load_rows
from riprap.commands._live import summarize_run
from riprap.commands._models import load_model
from riprap.commands.watch._config import LoraConfig, TrainedConfig, TrainingConfig, WatchConfig
from riprap.commands.watch._cost_estimate import estimate_cost, make_step_fn, print_cost
from riprap.commands.watch._resume import TRAINER_FOLDER, find_checkpoint, require_empty_run_dir
from riprap.commands.watch._run import (
    MAX_CHECKPOINTS,
    MODEL_FOLDER,
    TrainingRun,
    check_config,
    lora_config,
    on_cpu,
    planned_steps,
    prepare,
    run_watch,
    sft_config,
)
from riprap.commands.watch._training import PassedOn, init_fields
from riprap.integrations.config import build_behavior, build_guard, build_selector
