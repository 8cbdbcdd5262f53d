"""Multiple choice by likelihood: the option counts that the model finds most likely as an answer.

Contexts are plain text, in the forms of lm-eval without examples, so that numbers can be compared;
TruthfulQA lacks the six questions that lm-eval puts first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from riprap._text import shorten
from riprap.errors import ConfigError
from riprap.evals._files import Row
from riprap.evals._likelihood import Continuation
from riprap.evals._live import Advance, Live
from riprap.evals._result import EvalRow

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Question:
    """A context with options.

    Attributes:
        right: indices of right options; of several, the first is the best one.
    """

    context: str
    options: tuple[str, ...]
    right: tuple[int, ...]


@dataclass(frozen=True)
class ChoiceTask:
    """A task of multiple choice.

    Attributes:
        ask: makes the question of a row.
        metrics: makes the values of a row, from the log-likelihoods of its options; the main one
            comes first.
    """

    name: str
    file: str
    fields: tuple[str, ...]
    ask: Callable[[Row], Question]
    metrics: Callable[[Question, Sequence[float]], dict[str, float]]
    lower_is_better = False

    def request(self, row: Row) -> str:
        """Return what identifies a row."""
        return str(row["question"])

    def check(self, live: Live, rows: Sequence[Row]) -> None:
        """Refuse rows that are no questions, and options that the model cannot read."""
        try:
            live.require_pairs(self._pairs([self._checked(row, at) for at, row in enumerate(rows)]))
        except ConfigError as error:
            text = str(error)
            raise ConfigError(
                text if text.startswith("task ") else f"task {self.name!r}: {text}"
            ) from error

    def run(
        self, live: Live, rows: Sequence[Row], advance: Advance | None
    ) -> tuple[list[EvalRow], list[str]]:
        """Return the values of each row, without keys, and notes."""
        questions = [self._checked(row, at) for at, row in enumerate(rows)]
        pairs = self._pairs(questions)
        per_option = len(questions) / len(pairs)

        def step(count: float) -> None:
            if advance is not None:
                advance(count * per_option)

        found = live.log_likelihoods(pairs, step)
        results, at = [], 0
        for own in questions:
            part = found[at : at + len(own.options)]
            at += len(own.options)
            results.append(self._row(own, part))
        n_cut = sum(one.truncated > 0 for one in found)
        cut = f"{n_cut} of {len(found)} contexts were cut at their beginning to fit the model"
        return results, [cut] if n_cut else []

    @staticmethod
    def _pairs(questions: Sequence[Question]) -> list[tuple[str, str]]:
        return [(own.context, f" {option}") for own in questions for option in own.options]

    def _row(self, own: Question, part: Sequence[Continuation]) -> EvalRow:
        log_probs = [one.log_prob for one in part]
        if not np.isfinite(log_probs).all():
            raise ConfigError(f"task {self.name!r}: the model's likelihoods are not finite")
        chosen = int(np.argmax(log_probs))
        shown = {"request": shorten(own.context, 200), "answer": shorten(own.options[chosen], 100)}
        shown["target"] = shorten(own.options[own.right[0]], 100)
        return EvalRow("", self.metrics(own, log_probs), shown)

    def _checked(self, row: Row, at: int) -> Question:
        try:
            own = self.ask(row)
            fine = len(own.options) >= 2 and all(0 <= i < len(own.options) for i in own.right)
            fine = fine and bool(own.right) and all(option.strip() for option in own.options)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError):
            fine = False
        if not fine:
            raise ConfigError(
                f"task {self.name!r}: row {at} of {self.file} has no options with a right one"
            )
        return own


def accuracy(own: Question, log_probs: Sequence[float]) -> dict[str, float]:
    """Return whether the most likely option is right."""
    return {"accuracy": float(int(np.argmax(log_probs)) in own.right)}


def both_accuracies(own: Question, log_probs: Sequence[float]) -> dict[str, float]:
    """Return it by log-likelihood per character (lm-eval's acc_norm), and as it is (acc)."""
    by_length = np.array(log_probs) / [len(option) for option in own.options]
    return {
        "accuracy_norm": float(int(np.argmax(by_length)) in own.right),
        "accuracy": float(int(np.argmax(log_probs)) in own.right),
    }


def truthfulness(own: Question, log_probs: Sequence[float]) -> dict[str, float]:
    """Return MC1, whether the best answer beats all false ones, and MC2, the share of true ones."""
    numbers = np.array(log_probs)
    is_true = np.isin(np.arange(len(numbers)), own.right)
    return {
        "mc1": float(numbers[own.right[0]] > numbers[~is_true].max()),
        "mc2": float(min(1.0, special.softmax(numbers)[is_true].sum())),
    }


def plain_question(row: Row) -> Question:
    """Ask in the form of ARC: the options' texts are scored."""
    options = tuple(map(str, row["choices"]))
    return Question(f"Question: {row['question']}\nAnswer:", options, (int(row["answer"]),))


def lettered_question(row: Row) -> Question:
    """Ask in the form of CommonsenseQA: options are listed, and letters scored."""
    return _lettered(row, f"Question: {str(row['question']).strip()}\n")


def exam_question(row: Row) -> Question:
    """Ask in the form of MMLU, which names the subject first."""
    about = str(row["subject"]).replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {about}."
    return _lettered(row, f"{head}\n\n{str(row['question']).strip()}\n")


def medical_question(row: Row) -> Question:
    """Ask in the form of MedMCQA."""
    return _lettered(row, f"Question: {row['question']}\nChoices:\n")


def _lettered(row: Row, before: str) -> Question:
    letters = LETTERS[: len(row["choices"])]
    lines = [f"{a}. {option}\n" for a, option in zip(letters, row["choices"], strict=True)]
    return Question(f"{before}{''.join(lines)}Answer:", tuple(letters), (int(row["answer"]),))


def yes_or_no(row: Row) -> Question:
    """Ask in the form of BoolQ."""
    if not isinstance(row["answer"], bool):
        raise TypeError("the answer is neither true nor false")
    text = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return Question(text, ("no", "yes"), (int(row["answer"]),))


def truthful_question(row: Row) -> Question:
    """Ask in the form of TruthfulQA, with the best answer first and each answer once."""
    right = [str(row["best_answer"]), *map(str, row["correct_answers"])]
    right = list(dict.fromkeys(text.strip() for text in right))
    wrong = [text.strip() for text in map(str, row["incorrect_answers"])]
    wrong = [text for text in dict.fromkeys(wrong) if text not in right]
    if not wrong:
        raise ValueError("there is no false answer")
    options = (*right, *wrong)
    return Question(f"Q: {row['question']}\nA:", options, tuple(range(len(right))))
