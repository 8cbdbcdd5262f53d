"""Diagnosis: what is examined after the fact."""

from riprap.diagnosis.forgetting import Forgetting, forgetting

__all__ = ["Forgetting", "forgetting"]
