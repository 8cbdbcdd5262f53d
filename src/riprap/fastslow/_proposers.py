"""Proposers: functions that write a new instruction from one of the population."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from riprap._checks import CheckedCall, check_count
from riprap.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """A rollout of an instruction on one problem.

    Attributes:
        problem: the problem as the data set has it: a text, or turns.
        completion: what the model answered, as text.
        reward: weighted sum of the trainer's rewards; NaN: no function scored it.
        row: all columns of the problem's row, such as its answer.
    """

    problem: Any
    completion: str
    reward: float
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """A request for a new instruction.

    Attributes:
        instruction: the one to improve.
        examples: its rollouts on a few problems, with their rewards.
        population: instructions that are in use.
        rng: generator for a proposer's choices; the same run has the same one.
        generate: answers a text with the weights as they are now; called with the text and the
            largest number of new tokens. Each call counts as a rollout.
    """

    instruction: str
    examples: Sequence[Example]
    population: Sequence[str]
    rng: Random = field(repr=False)
    generate: Callable[[str, int], str] = field(repr=False)


Proposer = Callable[[Request], str]


class EditGrammar(metaclass=CheckedCall):
    """Proposer that edits one line of an instruction; needs no language model.

    A line is added, removed, replaced or moved, each with the same probability where it is
    possible. New lines are drawn from `sentences`.

    Args:
        sentences: lines that an instruction may have.

    Raises:
        ConfigError: there are no sentences, one is no text, is empty, has several lines, or is
            given twice.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        if isinstance(sentences, str) or not sentences:
            raise ConfigError("EditGrammar has no sentences: give a list of texts, one line each")
        for sentence in sentences:
            if not isinstance(sentence, str) or not sentence.strip() or "\n" in sentence:
                raise ConfigError(f"EditGrammar: {sentence!r} is no line of text")
        if len(set(sentences)) < len(sentences):
            raise ConfigError("EditGrammar: a sentence is given twice: give each once")
        self.sentences = tuple(sentences)

    def __call__(self, request: Request) -> str:
        """Return the instruction of a request with one edit."""
        lines = request.instruction.split("\n") if request.instruction else []
        new = [sentence for sentence in self.sentences if sentence not in lines]
        edits = ["add", "replace"] if new and lines else ["add"] if new else []
        edits += ["remove"] if lines else []
        edits += ["move"] if len(lines) > 1 else []
        rng = request.rng
        edit = rng.choice(edits)
        if edit == "add":
            lines.insert(rng.randint(0, len(lines)), rng.choice(new))
        elif edit == "replace":
            lines[rng.randrange(len(lines))] = rng.choice(new)
        elif edit == "remove":
            del lines[rng.randrange(len(lines))]
        else:
            start, end = rng.sample(range(len(lines)), 2)
            lines.insert(end, lines.pop(start))
        return "\n".join(lines)


TEMPLATE = """\
A model solves problems with the help of an instruction that stands before each of them.

The instruction now:
```
{instruction}
```

What the model did with it (a higher reward is better):

{examples}

Write a better instruction. Keep what helped, add what the failures lacked, and do not solve any
single problem in it. Answer with the whole new instruction between two lines of ``` and nothing
else.
"""


class LanguageModel(metaclass=CheckedCall):
    """Proposer that asks a language model for a better instruction, with examples of the last one.

    Args:
        call: answers a text with a text; None: the model in training.
        template: the question, with `{instruction}` and `{examples}` in it.
        max_new_tokens: longest answer of the model in training.

    Raises:
        ConfigError: `call` cannot be called, or the template lacks a place.
    """

    def __init__(
        self,
        call: Callable[[str], str] | None = None,
        *,
        template: str = TEMPLATE,
        max_new_tokens: int = 256,
    ) -> None:
        if call is not None and not callable(call):
            raise ConfigError("LanguageModel: give a function from text to text as call, or None")
        for place in ("{instruction}", "{examples}"):
            if place not in template:
                raise ConfigError(f"LanguageModel: the template has no place {place}")
        check_count("max_new_tokens", max_new_tokens)
        self.call, self.template, self.max_new_tokens = call, template, max_new_tokens

    def __call__(self, request: Request) -> str:
        """Return the instruction that the language model writes."""
        examples = "\n\n".join(map(_describe, request.examples))
        fill = {"instruction": request.instruction, "examples": examples}
        # Not str.format: the texts may have braces of their own.
        question = re.sub(r"\{(instruction|examples)\}", lambda at: fill[at[1]], self.template)
        if self.call is None:
            answer = request.generate(question, self.max_new_tokens)
        else:
            answer = self.call(question)
        fenced = re.findall(r"```[^\n]*\n(.*?)\n?```", answer, re.S)
        text: str = (fenced[-1] if fenced else answer).strip()
        if not text or "```" in text:
            raise ConfigError("the language model's answer is empty, or ends before its ``` does")
        return text


def _describe(example: Example) -> str:
    """Return an example as text, with the other columns of its row."""
    problem = example.problem
    if not isinstance(problem, str):
        problem = "\n".join(f"{turn['role']}: {turn['content']}" for turn in problem)
    others = [f"{key}: {value}" for key, value in example.row.items() if key != "prompt"]
    lines = [f"problem: {problem}", *others, f"completion: {example.completion}"]
    return "\n".join([*lines, f"reward: {example.reward:g}"])
