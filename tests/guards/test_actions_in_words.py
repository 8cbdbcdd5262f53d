"""Actions can be read: a sentence for each action, and one for each guard."""

from __future__ import annotations

import re

import pytest

from guards.cases import CASES, Run, lessons
from riprap import guards
from riprap.guards import describe_actions
from riprap.types import Action

UNREADABLE = re.compile(r"θ|⟨|h_b|g_b|p_b|product|a share of")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_action_says_what_was_done_or_why_nothing_was(case) -> None:  # type: ignore[no-untyped-def]
    run = Run(case()).go(lessons(8))
    for action in run.monitor.actions:
        assert len(action.detail) > 10, action
        assert not UNREADABLE.search(action.detail), action.detail
        assert str(action).startswith(f"step {action.step}, {action.guard}: {action.detail}")
        assert ("training unchanged" in str(action)) is not action.applied
    sentences = describe_actions(run.monitor.actions)
    assert len(sentences) == len({action.guard for action in run.monitor.actions})


def test_a_guard_is_described_in_one_sentence() -> None:
    done = "removed 42% of the gradient's component against refusal"
    actions = [
        Action(1, "gem", "gradients", False, "nothing to do: the step goes against nothing"),
        Action(2, "gem", "gradients", True, done),
        Action(3, "gem", "gradients", True, done),
        Action(3, "rollback", "visit", True, "refusal: rolled back from step 3 to the state of 1"),
        Action(9, "rollback", "visit", False, "refusal: recovered, so nothing was restored"),
        Action(4, "clip", "gradients", False, "nothing to do: short enough"),
    ]
    assert describe_actions(actions) == [
        f"gem changed 2 steps (the last, step 3: {done}).",
        "rollback acted after step 3 (refusal: rolled back from step 3 to the state of 1); said "
        "after step 9: refusal: recovered, so nothing was restored.",
        "clip changed no step (the last reason, at step 4: nothing to do: short enough).",
    ]
    assert describe_actions([]) == []


def test_shares_in_the_text_are_those_of_the_step() -> None:
    """42% of the length, 100% of the component: measured on the numbers of the action."""
    ogd = Run(guards.OGD(directions=8)).go(lessons(3)).monitor.actions[0]
    share = ogd.before["along"] / ogd.before["norm"]
    assert ogd.detail.startswith(f"removed {share:.0%} of the gradient's length")
    clip = Run(guards.Clip(0.1)).go(lessons(1)).monitor.actions[0]
    assert clip.detail == f"shortened the gradient from {clip.before['norm']:.3g} to 0.1"
