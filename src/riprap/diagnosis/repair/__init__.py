"""Repair: ways to restore lost behaviors, measured on a copy together with their cost.

- `compare_repairs` tries each kind of repair and returns a `Repair` for each.
- `cheapest_repair` selects one; `apply_repair` applies it to the model until exit.
- `merged_weights`: weights of a repaired model, with fresh adapters merged.
"""

from riprap.diagnosis.repair._evaluator import Repair
from riprap.diagnosis.repair._repairs import apply_repair, cheapest_repair, compare_repairs
from riprap.diagnosis.repair._strategies import merged_weights

__all__ = ["Repair", "apply_repair", "cheapest_repair", "compare_repairs", "merged_weights"]
