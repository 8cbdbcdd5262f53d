"""Export of results as eval logs of inspect_ai: JSON of version 2 of its format, a file a task.

The files are written without inspect_ai, which would bring some thirty packages. Its own reader
opens them: `inspect view --log-dir FOLDER`, `inspect_ai.log.read_eval_log(FILE)`.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from riprap import __version__
from riprap.evals._estimates import Estimate
from riprap.evals._result import EvalResult, EvalRow, TaskResult
from riprap.record import save_result

LOG_VERSION = 2
UNSEEN = "(not stored: answers to such requests are not kept)"


def to_inspect(result: EvalResult, folder: str | Path) -> list[Path]:
    """Write each task as an eval log of inspect_ai; return the files.

    A sample is a row, with the beginning of its request and of its answer, and a score for each
    metric. Answers to harmful requests are not stored, so their samples have none. A log is
    dated by its export: results do not store when they were measured. Their seconds are in its
    metadata.

    Args:
        result: that of `evaluate` or of `load_evals`.
        folder: for `inspect view --log-dir`; files of the same result are written anew.

    Raises:
        ConfigError: a file cannot be written.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return [_write(result, task, Path(folder), created) for task in result.tasks]


def _write(result: EvalResult, task: TaskResult, folder: Path, created: str) -> Path:
    facts = [result.model, task.task, *(row.key for row in task.rows), str(task.seconds)]
    identity = sha256("\n".join(facts).encode("utf-8", "surrogatepass")).hexdigest()[:22]
    name = re.sub(r"[^A-Za-z0-9-]+", "-", task.task).strip("-") or "task"
    for old in folder.glob(f"*_{name}_{identity}.json"):
        old.unlink()
    file = folder / f"{created.replace(':', '-')}_{name}_{identity}.json"
    save_result(_log(result, task, created, identity), file)
    return file


def _log(result: EvalResult, task: TaskResult, created: str, identity: str) -> dict[str, Any]:
    judges = list(task.judges)
    return {
        "version": LOG_VERSION,
        "status": "error" if task.error else "success",
        "eval": {
            "eval_id": identity,
            "run_id": identity,
            "task_id": identity,
            "created": created,
            "task": task.task,
            "dataset": {
                "name": task.task,
                "samples": len(task.rows),
                "sample_ids": [row.key for row in task.rows],
                "shuffled": False,
            },
            "model": result.model,
            "config": {"epochs": 1},
            "packages": {"riprap": __version__},
            "metadata": {
                "settings": result.settings,
                "judges": judges,
                "lower_is_better": task.lower_is_better,
                "notes": list(task.notes),
                "seconds": task.seconds,
            },
            "scorers": [{"name": name} for name in task.scores],
        },
        "plan": {"name": "plan", "steps": [{"solver": "riprap.evals", "params": {}}]},
        "results": {
            "total_samples": len(task.rows),
            "completed_samples": len(task.rows),
            "scores": [_score(task, name, own) for name, own in task.scores.items()],
        },
        **({"error": _error(task.error)} if task.error else {}),
        "samples": [_sample(result, task, row) for row in task.rows],
    }


def _error(text: str) -> dict[str, str]:
    return {"message": text, "traceback": text, "traceback_ansi": text}


def _score(task: TaskResult, name: str, own: Estimate) -> dict[str, Any]:
    values = [row.values[name] for row in task.rows if name in row.values]
    numbers = {"mean": own.value, "stderr": _stderr(values), "low": own.low, "high": own.high}
    return {
        "name": name,
        "scorer": name,
        "scored_samples": own.n,
        "unscored_samples": len(task.rows) - own.n,
        "metrics": {key: {"name": key, "value": value} for key, value in numbers.items()},
        "metadata": {"interval": "low and high: 95 %, Wilson"},
    }


def _stderr(values: list[float]) -> float:
    """Return the standard error of a mean, as inspect_ai's `stderr`; 0 for a single value."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((own - mean) ** 2 for own in values) / (n - 1) / n)


def _sample(result: EvalResult, task: TaskResult, row: EvalRow) -> dict[str, Any]:
    request, answer = str(row.shown.get("request", "")), row.shown.get("answer")
    said = UNSEEN if answer is None else str(answer)
    turns = [("user", request), ("assistant", said)]
    reply = {"role": "assistant", "content": said, "source": "generate"}
    return {
        "id": row.key,
        "epoch": 1,
        "input": request,
        "target": str(row.shown.get("target", "")),
        "messages": [{"role": role, "content": content} for role, content in turns],
        "output": {
            "model": result.model,
            "choices": [{"message": reply, "stop_reason": "stop"}],
            "completion": said,
        },
        "scores": {name: {"value": value, "answer": said} for name, value in row.values.items()},
    }
