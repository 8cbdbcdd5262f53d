"""The run record: an append-only event log; report, page and trackers are views of it.

A single SQLite file in WAL mode. One process writes and any number read. Committed rows survive the
death of the writer.

- `Writer`, `Reader`: append to a record, read it.
- `events_that_stand`: events of a kind, without those of steps that were taken again.
- `Series`: values by step, as `Reader.series` returns them.
- `Window`, `position`, `margins_at`: what is new in a record, thinned in SQL, for live views.
- `to_dataframe`: readings as a pandas DataFrame.
- `clean_readings`: readings that the record can hold; `ERROR` in place of a malformed one.
- `detector_name`: name of a detector as it is today, of one that was recorded.
- `numbers_from_facts`: numbers of an event, those that are not finite as well.
- `instructions_of`: instructions of fast–slow training, as `Instructions`.
- `results_of_run`, `load_result`: results of other commands in a run's folder, such as `DIAGNOSIS`;
  `folders_of_run`: where they lie; `evals_of_run`: results of evals, also beside checkpoints;
  `run_of_model`, `origin_of_model`: the run in whose folder a model lies, and where it lies there;
  `save_result`, `state_of_results`: write one, and see whether any has changed;
  `state_of_weights`: the same for the files of a model.
- `expand_time`: folder of a run with the present time in place of `{time}`.
- `save_state`, `load_state`, `check_fields`: states of a resumable run on disk.
"""

from riprap.record._increments import Window, margins_at, position
from riprap.record._instructions import (
    FAST_CYCLE,
    Instruction,
    Instructions,
    RejectedInstruction,
    instructions_of,
)
from riprap.record._layout import FILE_NAME, LOGS, locate_record, records_below
from riprap.record._reader import (
    ANSWERS,
    CHECKPOINT,
    CLEARED,
    COST,
    DEFAULT_FLOOR,
    GUARD,
    PLAN,
    STOP,
    TRAINING,
    Reader,
    events_that_stand,
    withdrawn_alerts,
)
from riprap.record._results import (
    AUDIT,
    DIAGNOSIS,
    EVALS,
    PREFLIGHT,
    evals_of_run,
    folders_of_run,
    load_result,
    origin_of_model,
    results_of_run,
    run_of_model,
    save_result,
    state_of_results,
    state_of_weights,
)
from riprap.record._rows import (
    alert_from_row,
    alert_to_row,
    clean_readings,
    detector_name,
    forecast_from_json,
    forecast_to_json,
    numbers_from_facts,
    to_dataframe,
)
from riprap.record._series import Series
from riprap.record._state import check_fields, load_state, save_state
from riprap.record._writer import Writer, expand_time, require_vacant

__all__ = [
    "ANSWERS",
    "AUDIT",
    "CHECKPOINT",
    "CLEARED",
    "COST",
    "DEFAULT_FLOOR",
    "DIAGNOSIS",
    "EVALS",
    "FAST_CYCLE",
    "FILE_NAME",
    "GUARD",
    "LOGS",
    "PLAN",
    "PREFLIGHT",
    "STOP",
    "TRAINING",
    "Instruction",
    "Instructions",
    "Reader",
    "RejectedInstruction",
    "Series",
    "Window",
    "Writer",
    "alert_from_row",
    "alert_to_row",
    "check_fields",
    "clean_readings",
    "detector_name",
    "evals_of_run",
    "events_that_stand",
    "expand_time",
    "folders_of_run",
    "forecast_from_json",
    "forecast_to_json",
    "instructions_of",
    "load_result",
    "load_state",
    "locate_record",
    "margins_at",
    "numbers_from_facts",
    "origin_of_model",
    "position",
    "records_below",
    "require_vacant",
    "results_of_run",
    "run_of_model",
    "save_result",
    "save_state",
    "state_of_results",
    "state_of_weights",
    "to_dataframe",
    "withdrawn_alerts",
]
