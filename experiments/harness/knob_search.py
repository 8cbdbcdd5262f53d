"""The search of each guard's one main parameter on the exploratory seeds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from experiments.harness.preregistration import PreregistrationError


def discount(kept: float, learned: float, plain_learned: float, enough: float) -> float:
    """Return the objective: what is kept, reduced if less of the new task is learned.

    Args:
        learned, plain_learned: accuracies of the run and of the plain run.
        enough: share of the plain run's accuracy from which nothing is subtracted.
    """
    reached = learned / max(plain_learned, 1e-9)
    return kept * min(1.0, reached / enough)


def best_values(trials: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Return the value with the best mean objective by guard; the first one at a tie.

    Args:
        trials: (guard, value, objective).
    """
    by_guard: dict[str, dict[float, list[float]]] = {}
    for guard, value, objective in trials:
        by_guard.setdefault(guard, {}).setdefault(value, []).append(objective)
    return {
        guard: max(by_value, key=lambda value: float(np.mean(by_value[value])))
        for guard, by_value in by_guard.items()
    }


def require_knobs(study: str, knobs: Mapping[str, float], guards: Collection[str]) -> None:
    """Check that the preregistration has a value for each guard.

    Raises:
        PreregistrationError: a value is missing.
    """
    for guard in guards:
        if guard not in knobs:
            raise PreregistrationError(
                f"preregistration {study!r} has no knob for {guard!r}: "
                f"`python -m experiments {study} --search` finds it, and "
                f"`python -m experiments amend {study}` adds it"
            )
