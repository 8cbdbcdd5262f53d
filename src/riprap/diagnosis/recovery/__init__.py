from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._recover import Recovery, Regained, recover
from riprap.diagnosis.recovery._relearn import copy_of, learns_by_adapters, rates, steps_of
from riprap.diagnosis.recovery._relearning_runs import FEWEST
from riprap.diagnosis.recovery._verdict import LOST, Evidence

__all__ = [
    "FEWEST",
    "LOST",
    "Evidence",
    "Examples",
    "Recovery",
    "Regained",
    "copy_of",
    "learns_by_adapters",
    "rates",
    "recover",
    "steps_of",
]
