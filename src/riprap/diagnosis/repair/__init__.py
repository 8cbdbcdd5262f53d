from riprap.diagnosis.repair._evaluator import Repair
from riprap.diagnosis.repair._repairs import cheapest_repair, apply_repair, compare_repairs
from riprap.diagnosis.repair._strategies import merged_weights

__all__ = ["Repair", "cheapest_repair", "apply_repair", "compare_repairs", "merged_weights"]
