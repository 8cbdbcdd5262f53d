"""The tasks by name, and the suites that they make."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from riprap.errors import ConfigError
from riprap.evals import _answers as answers
from riprap.evals import _choices as choices
from riprap.evals._answers import JudgedTask, Judging, TextTask
from riprap.evals._choices import ChoiceTask

Task = ChoiceTask | TextTask | JudgedTask
CHOICE_FIELDS = ("question", "choices", "answer")
SUITES = {
    "safety": ("advbench", "strongreject", "xstest_safe"),
    "general": ("arc_challenge", "commonsenseqa", "boolq", "medmcqa", "gsm8k", "squad_v2"),
    "truth": ("truthfulqa",),
}
# Tasks whose requests are of the same kind as those of a shipped or public probe set, by its name.
BEHAVIOR_TASKS = {
    "refusal": ("advbench", "strongreject", "xstest_unsafe"),
    "strongreject": ("strongreject",),
    "xstest_unsafe": ("xstest_unsafe",),
    "over_refusal": ("xstest_safe",),
    "xstest_safe": ("xstest_safe",),
}
# Tasks that need more than such a probe set: other knowledge, several steps, or a form of answer.
RELATED_TASKS = {
    "arithmetic": ("gsm8k",),
    "general_knowledge": ("arc_challenge", "arc_easy", "commonsenseqa", "mmlu"),
}


def all_tasks(judging: Judging) -> dict[str, Task]:
    """Return the tasks by name; those of harmful and of safe requests use the judges."""
    tasks: list[Task] = [
        *_judged_tasks(judging),
        ChoiceTask(
            "arc_challenge",
            "arc_challenge_test.jsonl",
            CHOICE_FIELDS,
            choices.plain_question,
            choices.both_accuracies,
        ),
        ChoiceTask(
            "arc_easy",
            "arc_easy_test.jsonl",
            CHOICE_FIELDS,
            choices.plain_question,
            choices.both_accuracies,
        ),
        ChoiceTask(
            "commonsenseqa",
            "commonsenseqa_dev.jsonl",
            CHOICE_FIELDS,
            choices.lettered_question,
            choices.accuracy,
        ),
        ChoiceTask(
            "mmlu",
            "mmlu_val_sample.jsonl",
            ("subject", *CHOICE_FIELDS),
            choices.exam_question,
            choices.accuracy,
        ),
        ChoiceTask(
            "medmcqa",
            "medmcqa_test.jsonl",
            CHOICE_FIELDS,
            choices.medical_question,
            choices.accuracy,
        ),
        ChoiceTask(
            "boolq",
            "boolq_test.jsonl",
            ("question", "passage", "answer"),
            choices.yes_or_no,
            choices.accuracy,
        ),
        ChoiceTask(
            "truthfulqa",
            "truthfulqa.jsonl",
            ("question", "best_answer", "correct_answers", "incorrect_answers"),
            choices.truthful_question,
            choices.truthfulness,
        ),
        TextTask(
            "gsm8k",
            "gsm8k_test.jsonl",
            ("question", "answer"),
            answers.ask_number,
            answers.score_number,
            answers.right_number,
            256,
        ),
        TextTask(
            "squad_v2",
            "squad_v2_test.jsonl",
            ("context", "question"),
            answers.ask_reading,
            answers.score_reading,
            answers.right_reading,
            32,
        ),
    ]
    return {task.name: task for task in tasks}


def _judged_tasks(judging: Judging) -> list[Task]:
    attack, over = ("attack_success", True, judging), ("over_refusal", False, judging)
    return [
        JudgedTask("advbench", "advbench_harmful_behaviors.csv", ("goal",), *attack),
        JudgedTask("strongreject", "strongreject.jsonl", ("prompt",), *attack),
        JudgedTask(
            "xstest_unsafe",
            "xstest.jsonl",
            ("prompt", "label"),
            *attack,
            lambda row: row["label"] == "unsafe",
        ),
        JudgedTask(
            "xstest_safe",
            "xstest.jsonl",
            ("prompt", "label"),
            *over,
            lambda row: row["label"] == "safe",
        ),
    ]


def choose_tasks(names: Sequence[str], judging: Judging) -> list[Task]:
    """Return the tasks of suites and of single names, each once.

    Raises:
        ConfigError: there are none, or a name is neither a suite nor a task.
    """
    known = all_tasks(judging)
    chosen: dict[str, Task] = {}
    for name in names:
        if name not in SUITES and name not in known:
            near = difflib.get_close_matches(name, [*SUITES, *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{name!r} is neither a suite ({', '.join(SUITES)}) nor a task "
                f"({', '.join(known)}){hint}"
            )
        for own in SUITES.get(name, (name,)):
            chosen[own] = known[own]
    if not chosen:
        raise ConfigError(f"there are no tasks: give suites, such as {', '.join(SUITES)}")
    return list(chosen.values())
