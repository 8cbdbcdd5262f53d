from riprap.diagnosis.repair._evaluator import Repair
from riprap.diagnosis.repair._repairs import cheapest, repaired, repairs
from riprap.diagnosis.repair._strategies import whole_weights

__all__ = ["Repair", "cheapest", "repaired", "repairs", "whole_weights"]
