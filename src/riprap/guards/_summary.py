"""Guards' actions in words: one sentence for each guard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from riprap.types import Action


def describe_actions(actions: Iterable[Action]) -> list[str]:
    """Return one sentence for each guard, in the order in which they first acted.

    It says at how many steps a guard changed training, which states it restored, the last thing
    that it did, and the last reason why a probe evaluation found nothing to be done.
    """
    by_guard: dict[str, list[Action]] = {}
    for action in actions:
        by_guard.setdefault(action.guard, []).append(action)
    return [f"{guard} {_describe(own)}." for guard, own in by_guard.items()]


def _describe(actions: Sequence[Action]) -> str:
    """Return what one guard did, as the end of a sentence."""
    changed = [action for action in actions if action.applied and action.moment != "visit"]
    visits = [action for action in actions if action.moment == "visit"]
    parts = []
    if changed:
        steps = {action.step for action in changed}
        last = changed[-1]
        number = f"{len(steps)} step{'s' * (len(steps) != 1)}"
        parts.append(f"changed {number} (the last, step {last.step}: {last.detail})")
    parts += [f"acted after step {a.step} ({a.detail})" for a in visits if a.applied]
    refused = [action for action in visits if not action.applied]
    if refused:
        parts.append(f"said after step {refused[-1].step}: {refused[-1].detail}")
    if not parts:
        last = actions[-1]
        parts.append(f"changed no step (the last reason, at step {last.step}: {last.detail})")
    return "; ".join(parts)
