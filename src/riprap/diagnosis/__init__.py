"""Diagnosis: what is examined after the fact."""

from riprap.diagnosis.base import Estimate, Verdict
from riprap.diagnosis.forgetting import Forgetting, forgetting
from riprap.diagnosis.recovery import Recovery, Regained, recover
from riprap.diagnosis.verdict import Evidence
from riprap.diagnosis.weights import Folder

__all__ = [
    "Estimate",
    "Evidence",
    "Folder",
    "Forgetting",
    "Recovery",
    "Regained",
    "Verdict",
    "forgetting",
    "recover",
]
