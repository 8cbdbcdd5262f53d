"""`riprap gate`: hold a run, or a tuned model, to requirements.

- `parse_requirements`: requirements from a text such as "refusal>=0.9, no critical".
- `check_run`, `check_models`: check them on a record, or on a tuned model beside its base;
  `check_evals`: on results of `riprap eval`.
- `GateResult`, `Check`, `Status`: what came out; `to_junit` writes it for CI systems.
"""

from riprap.commands.gate._checks import Check, GateResult, Status
from riprap.commands.gate._evals import check_evals
from riprap.commands.gate._junit import to_junit
from riprap.commands.gate._measure import check_models, check_run
from riprap.commands.gate._requirements import (
    NoAlert,
    Requirement,
    ScoreBound,
    parse_requirements,
)

__all__ = [
    "Check",
    "GateResult",
    "NoAlert",
    "Requirement",
    "ScoreBound",
    "Status",
    "check_evals",
    "check_models",
    "check_run",
    "parse_requirements",
    "to_junit",
]
