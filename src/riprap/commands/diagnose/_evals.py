"""Evals of the base and of the tuned model, as further evidence of what was lost."""

from __future__ import annotations

from pathlib import Path

from riprap.commands.diagnose._config import DiagnoseConfig
from riprap.errors import ConfigError
from riprap.evals import EvalResult, TaskChange, compare_evals, load_evals
from riprap.record import state_of_weights


def load_changes(config: DiagnoseConfig) -> tuple[TaskChange, ...]:
    """Return what changed from the evals of the base to those of the tuned model; (): none given.

    Raises:
        ConfigError: a result is malformed or of another model, the two were measured differently,
            or no task is in both.
    """
    if config.evals is None:
        return ()
    found = []
    for path, model, role in zip(
        config.evals, (config.base, config.tuned), ("BASE", "TUNED"), strict=True
    ):
        result = load_evals(path.expanduser())
        _require_model(result, path, model, role)
        found.append(result)
    return compare_evals(*found)


def _require_model(result: EvalResult, path: Path, model: str, role: str) -> None:
    """Refuse evals of another model, or of weights that were written anew since."""
    now = state_of_weights(Path(model).expanduser())
    is_same = result.model == model or _is_same_folder(result.model, model)
    if result.weights and now:
        if result.weights == now:
            return
        if is_same:
            raise ConfigError(
                f"{path}: the weights of {role} were written anew since these evals: run riprap "
                f"eval {model} again"
            )
    if not is_same:
        raise ConfigError(
            f"{path} holds evals of {result.model!r}, and {role} is {model!r}: give --evals the "
            f"results of riprap eval {model}; those of BASE come first"
        )


def _is_same_folder(one: str, other: str) -> bool:
    try:
        first, second = (Path(name).expanduser() for name in (one, other))
        return first.is_dir() and first.resolve() == second.resolve()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, NUL
        return False
