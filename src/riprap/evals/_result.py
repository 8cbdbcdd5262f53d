"""Results of evals: estimates with their rows, in a JSON file that other commands read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from riprap._text import escape_nested
from riprap.errors import ConfigError
from riprap.evals._estimates import Agreement, Estimate
from riprap.record import EVALS

FORMAT = "riprap.evals/2"
FILE_NAME = EVALS


@dataclass(frozen=True)
class EvalRow:
    """Row of a task.

    Attributes:
        key: hash of the row's request: the same in evals of other models.
        values: what each metric says of this row, in [0, 1].
        shown: beginning of the request, and of answer and target where they may be stored.
    """

    key: str
    values: dict[str, float]
    shown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """Measurements of a task.

    Attributes:
        scores: estimate of each metric; the first is the main one.
        lower_is_better: whether small values are good, of all metrics.
        notes: what a reader must know: rows that were cut, or not judged.
        judges: names of the judges of its answers; the first one's verdict counts.
        error: why nothing was measured; empty if something was.
    """

    task: str
    scores: dict[str, Estimate]
    lower_is_better: bool
    rows: tuple[EvalRow, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    judges: tuple[str, ...] = ()
    error: str = ""

    @property
    def main(self) -> str:
        """Name of the main metric; empty if nothing was measured."""
        return next(iter(self.scores), "")


@dataclass(frozen=True)
class JudgePair:
    """The names of two judges, and their agreement on answers that both judged."""

    first: str
    second: str
    agreement: Agreement


@dataclass(frozen=True)
class EvalResult:
    """Measurements of all tasks on a model.

    Attributes:
        judges: names of all judges of its tasks.
        agreements: of the first judge of a task with each further one.
        settings: how it was measured.
        weights: state of the files of the model's weights, as `record.state_of_weights` returns it.
        run: which run made the model, and where it lies there, as `record.origin_of_model` returns
            it; None: no run is known.
    """

    model: str
    tasks: tuple[TaskResult, ...]
    judges: tuple[str, ...] = ()
    agreements: tuple[JudgePair, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, list[int]] = field(default_factory=dict)
    run: dict[str, Any] | None = None

    def __getitem__(self, task: str) -> TaskResult:
        found = next((own for own in self.tasks if own.task == task), None)
        if found is None:
            known = ", ".join(own.task for own in self.tasks)
            raise ConfigError(f"task {task!r} was not measured; there are: {known}")
        if found.error:
            raise ConfigError(f"task {task!r} was not measured: {found.error}")
        return found

    @property
    def failed(self) -> tuple[TaskResult, ...]:
        """Tasks that measured nothing."""
        return tuple(own for own in self.tasks if own.error)

    def to_dict(self, rows: bool = True) -> dict[str, Any]:
        """Return it as plain values, for JSON; NaN becomes None."""
        values = {"format": FORMAT} | asdict(self)
        for pair in values["agreements"]:
            if math.isnan(pair["agreement"]["kappa"]):
                pair["agreement"]["kappa"] = None
        if not rows:
            for task in values["tasks"]:
                del task["rows"]
        return escape_nested(json.loads(json.dumps(values)))  # type: ignore[no-any-return]

    def save(self, file: Path) -> Path:
        """Write it as JSON, completely or not at all.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(f"{file}.partial")
            partial.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
            partial.replace(file)
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error}") from error
        return file


def is_evals(path: Path) -> bool:
    """Return whether a path is a result of evals, or a folder that holds one."""
    try:
        return (path / FILE_NAME).is_file() or (path.is_file() and path.suffix == ".json")
    except OSError:  # a name that is too long for a file
        return False


def load_evals(path: Path) -> EvalResult:
    """Read a result from its file, or from the folder that holds it.

    Raises:
        ConfigError: there is none, or it is malformed.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ConfigError(f"{file} is no result of `riprap eval` of the format {FORMAT}")
        return EvalResult(
            str(values["model"]),
            tuple(_task(own) for own in values["tasks"]),
            tuple(values["judges"]),
            tuple(_pair(own) for own in values["agreements"]),
            dict(values["settings"]),
            dict(values.get("weights", {})),  # since 2026-11-30, as `run`
            values.get("run"),
        )
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file} is a malformed result of evals: {type(error).__name__}: {error}"
        ) from error


def _task(values: dict[str, Any]) -> TaskResult:
    scores = {str(name): Estimate(**own) for name, own in values["scores"].items()}
    if not scores and not values["error"]:
        raise ValueError(f"task {values['task']!r} has no scores")
    rows = tuple(EvalRow(**row) for row in values["rows"])
    if any(not isinstance(row.values, dict) for row in rows):
        raise ValueError("the values of a row are no object")
    return TaskResult(
        str(values["task"]),
        scores,
        bool(values["lower_is_better"]),
        rows,
        tuple(values["notes"]),
        float(values["seconds"]),
        tuple(values["judges"]),
        str(values["error"]),
    )


def _pair(own: dict[str, Any]) -> JudgePair:
    values = own["agreement"]
    parts = {
        name: None if values[name] is None else Estimate(**values[name])
        for name in ("recall", "specificity")
    }
    kappa = math.nan if values["kappa"] is None else float(values["kappa"])
    found = Agreement(Estimate(**values["same"]), kappa, **parts)
    return JudgePair(str(own["first"]), str(own["second"]), found)
