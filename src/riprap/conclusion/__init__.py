"""Conclusion of a run: what each behavior came to, and the one sentence that all views begin with.

- `conclude`: read the conclusion from a record; `Conclusion` is what it returns.
- `BehaviorOutcome`, `State`: what a behavior came to, with the evidence.
- `monitor_seconds`: time that the monitor took, from what it recorded of its cost.
"""

from riprap.conclusion._conclude import Conclusion, conclude
from riprap.conclusion._facts import monitor_seconds
from riprap.conclusion._outcome import BehaviorOutcome, State

__all__ = ["BehaviorOutcome", "Conclusion", "State", "conclude", "monitor_seconds"]
