"""The monitor: signals, detectors and a record around a training loop.

- `Monitor`: the entry point; `Monitor.watch` opens a watch.
- `Tracker`: base of sinks of numbers and alerts.
- `ProbeSchedule`: steps at which the probes are evaluated.
- `keep_passing`: a behavior on the probes that a model passes.
- `measure_cost`, `Cost`: cost of a monitor on a given model.
- `say`, `in_terminal`, `beside_progress_bars`, `above_table`: words to the user during training.
- `versions`: versions of the packages that affect a run's numbers.
"""

from riprap.monitor._announce import above_table, beside_progress_bars, in_terminal, say
from riprap.monitor._budget import DEFAULT_BUDGET
from riprap.monitor._cost import Cost, measure_cost
from riprap.monitor._keep_passing import keep_passing
from riprap.monitor._monitor import Monitor
from riprap.monitor._probe_schedule import ProbeSchedule
from riprap.monitor._run_metadata import versions
from riprap.monitor._trackers import Tracker

__all__ = [
    "DEFAULT_BUDGET",
    "Cost",
    "Monitor",
    "ProbeSchedule",
    "Tracker",
    "above_table",
    "beside_progress_bars",
    "in_terminal",
    "keep_passing",
    "measure_cost",
    "say",
    "versions",
]
