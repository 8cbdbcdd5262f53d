"""Evals of a live model by generation and by likelihood, for checkpoints and before training.

- `evaluate`: run suites or tasks; `EvalResult`, `TaskResult`, `EvalRow`, `JudgePair`: what came
  out; `load_evals`, `is_evals`: read it again.
- `compare_evals`, `TaskChange`, `Outcome`: what changed from a base to a tuned model, row by row;
  `compare_task`, `change_interval`, `differences`, `require_same_measure`, `ALPHA`: its parts.
- `evals_of`, `RunEvals`, `EvalTable`, `EvalCell`: evals of a run's base and checkpoints, by task.
- `to_inspect`: write a result as eval logs of inspect_ai.
- `judges`: judges of answers, of the protocol of the package judgezoo.
- `Estimate`, `estimate`, `Agreement`, `agreement`: shares, intervals and kappa.
- `normalize_answer`, `squad_prediction`, `squad_scores`, `final_number`, `marked_number`: scores of
  texts.
- `Continuation`, `encode_pair`, `score_pairs`: log-likelihoods of continuations.
- `SUITES`, `task_names`: what there is to run; `BEHAVIOR_TASKS`: tasks with the requests of a
  behavior, by its name; `RELATED_TASKS`: those that need it and more.
"""

from riprap.evals._answers import Judging
from riprap.evals._compare import (
    ALPHA,
    Outcome,
    TaskChange,
    change_interval,
    compare_evals,
    compare_task,
    differences,
    require_same_measure,
)
from riprap.evals._estimates import Agreement, Estimate, agreement, estimate
from riprap.evals._inspect import to_inspect
from riprap.evals._likelihood import Continuation, encode_pair, longest_input, score_pairs
from riprap.evals._of_run import EvalCell, EvalTable, RunEvals, evals_of
from riprap.evals._result import (
    FILE_NAME,
    EvalResult,
    EvalRow,
    JudgePair,
    TaskResult,
    is_evals,
    load_evals,
)
from riprap.evals._run import evaluate
from riprap.evals._tasks import BEHAVIOR_TASKS, RELATED_TASKS, SUITES, all_tasks
from riprap.evals._text_metrics import (
    final_number,
    marked_number,
    normalize_answer,
    squad_prediction,
    squad_scores,
)


def task_names() -> list[str]:
    """Return the names of all tasks."""
    return list(all_tasks(Judging(())))


__all__ = [
    "ALPHA",
    "BEHAVIOR_TASKS",
    "FILE_NAME",
    "RELATED_TASKS",
    "SUITES",
    "Agreement",
    "Continuation",
    "Estimate",
    "EvalCell",
    "EvalResult",
    "EvalRow",
    "EvalTable",
    "JudgePair",
    "Outcome",
    "RunEvals",
    "TaskChange",
    "TaskResult",
    "agreement",
    "change_interval",
    "compare_evals",
    "compare_task",
    "differences",
    "encode_pair",
    "estimate",
    "evals_of",
    "evaluate",
    "final_number",
    "is_evals",
    "load_evals",
    "longest_input",
    "marked_number",
    "normalize_answer",
    "require_same_measure",
    "score_pairs",
    "squad_prediction",
    "squad_scores",
    "task_names",
    "to_inspect",
]
