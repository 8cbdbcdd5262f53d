"""Conclusion of a run: what each behavior came to, and the one sentence that all views begin with.

- `conclude`: read the conclusion from a record; `Conclusion` is what it returns.
- `BehaviorOutcome`, `State`: what a behavior came to, with the evidence.
- `averted`: what a guard did between an alert and its withdrawal; `Averted` is the evidence.
- `rows_to_blame`: the rows that did most of a fall, if something scored them; `Blame`, `Row`.
- `Restored`: what brings a lost behavior back, as a diagnosis has measured it.
- `monitor_seconds`: time that the monitor took, from what it recorded of its cost.
"""

from riprap.conclusion._averted import Averted, averted
from riprap.conclusion._conclude import Conclusion, conclude
from riprap.conclusion._facts import monitor_seconds
from riprap.conclusion._outcome import BehaviorOutcome, State
from riprap.conclusion._restored import Restored
from riprap.conclusion._rows import Blame, Row, rows_to_blame

__all__ = [
    "Averted",
    "BehaviorOutcome",
    "Blame",
    "Conclusion",
    "Restored",
    "Row",
    "State",
    "averted",
    "conclude",
    "monitor_seconds",
    "rows_to_blame",
]
