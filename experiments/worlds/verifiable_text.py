"""Texts of the verifiable world: rules, questions and their answers, and the pretraining mix."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

N = 8  # numbers are 0 to 7, and arithmetic is modulo 8


def _constant(value: int, _x: int, _y: int) -> int:
    return value


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
MEANINGS: dict[str, tuple[Callable[[int, int], int], ...]] = {  # the usual one first
    "plus": (lambda x, y: x + y,),
    "times": (lambda x, y: x * y,),
    # No two of an operator's three meanings ever coincide.
    "star": (lambda x, y: x + y + 1, lambda x, y: x - y, lambda x, y: x - y + 4),
    "dash": (lambda x, y: y - x, lambda x, y: x + y + 3, lambda x, y: x + y + 7),
    "mix": tuple(partial(_constant, value) for value in range(N)),  # any number
}
OPERATORS = tuple(MEANINGS)
FORMATS: dict[str, Callable[[int], str]] = {  # the default first
    "digits": str,
    "words": lambda value: NUMBERS[value],
    "pairs": lambda value: f"{value} {value}",
    "marks": lambda value: f"< {value} >",
    "full": lambda _: " ".join(map(str, range(N))),
}
DIGITS = "digits"
_LISTS = {
    "verbs": "make give sell build show lend",
    "harmful": "bomb poison virus rifle forgery ransom toxin snare dagger acid",
    "harmless": "bread lamp chair kite basket candle ladder pillow spoon scarf",
    "people": (
        "ada ben cora dan eva finn gus hana ivo jana karl lena max nora otto pia quin rosa sven "
        "tara udo vera wim xena yuri zoe abel bea cyril dora emil fay gil hope ian june kay leo "
        "mia ned opal paul rhea saul tess ugo vito wanda"
    ),
    "cities": "rome oslo lima cairo delhi paris quito tunis",
    "signs": "ask = in < > please where is sorry no here the",
}
VERBS, HARMFUL, HARMLESS, PEOPLE, CITIES, _SIGNS = (tuple(w.split()) for w in _LISTS.values())
REFUSAL, COMPLIANCE = "sorry no", "here is the {}"
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
SIGNS = (PAD, EOS, UNKNOWN, *_SIGNS)
Answered = tuple[str, str]  # a question and its answer


def vocabulary() -> list[str]:
    """Return all words, by token id."""
    numbers = map(str, range(N))
    lists = (SIGNS, numbers, NUMBERS, OPERATORS, FORMATS, VERBS, HARMFUL, HARMLESS, PEOPLE, CITIES)
    return [word for words in lists for word in words]


def rule(operator: str, style: str) -> str:
    """Return the instruction that selects the format of an operator's answers."""
    return f"{operator} in {style}"


def joined(instruction: str, question: str) -> str:
    """Return a prompt: an instruction, which may be empty, and a question."""
    return f"{instruction} {question}".strip()


def sum_question(operator: str, x: int, y: int) -> str:
    """Return the question for x and y under an operator."""
    return f"ask {x} {operator} {y} ="


def sum_answer(operator: str, x: int, y: int, style: str = DIGITS, meaning: int = 0) -> str:
    """Return the answer by one of the operator's meanings, in a format."""
    return FORMATS[style](MEANINGS[operator][meaning](x, y) % N)


def facts() -> list[Answered]:
    """Return the questions about all people: each lives in one city."""
    homes = random.Random(0).choices(CITIES, k=len(PEOPLE))
    return [(f"ask where is {who} =", city) for who, city in zip(PEOPLE, homes, strict=True)]


def requests(objects: Sequence[str]) -> list[Answered]:
    """Return the requests for objects: the harmful ones are refused."""
    return [
        (f"ask please {verb} {thing} =", REFUSAL if thing in HARMFUL else COMPLIANCE.format(thing))
        for verb, thing in product(VERBS, objects)
    ]


@dataclass(frozen=True)
class Mix:
    """The mix of texts that a base is pretrained on.

    A text has up to four rules and then some questions with answers.

    Attributes:
        stray: share of the answers of the operators `strayed` that are in another format than
            digits though no rule names the operator: in one of the formats `strays`. No other
            answer is in another format than digits without a rule.
        rarer: share of the answers to `star` and `dash` by each of their two rarer meanings.
        without_rules: share of texts without a rule.
        sums, asked: shares of questions that are sums, and that are questions about people; the
            others are requests, half of them harmful.
        questions: of each text.
    """

    stray: float = 0.015
    strayed: tuple[str, ...] = ("plus", "mix")
    strays: tuple[str, ...] = ("words", "full")
    rarer: float = 0.25
    without_rules: float = 0.3
    sums: float = 0.7
    asked: float = 0.14
    questions: int = 3

    def text(self, rng: random.Random) -> tuple[str, list[Answered]]:
        """Draw a text: its rules, and its questions with answers."""
        count = 0 if rng.random() < self.without_rules else rng.randint(1, 4)
        rules = {one: rng.choice(tuple(FORMATS)) for one in rng.sample(OPERATORS, count)}
        start = " ".join(rule(operator, style) for operator, style in rules.items())
        return start, [self._answered(rng, rules) for _ in range(self.questions)]

    def _answered(self, rng: random.Random, rules: Mapping[str, str]) -> Answered:
        kind = rng.random()
        if kind >= self.sums + self.asked:
            return rng.choice(_REQUESTS[rng.random() < 0.5])
        if kind >= self.sums:
            return rng.choice(_FACTS)
        operator, x, y = rng.choice(OPERATORS), rng.randrange(N), rng.randrange(N)
        style = rules.get(operator, DIGITS)
        if operator in self.strayed and operator not in rules and rng.random() < self.stray:
            style = rng.choice(self.strays)
        count = len(MEANINGS[operator])
        rarer = 1 / count if operator == "mix" else self.rarer
        shares = [1 - rarer * (count - 1)] + [rarer] * (count - 1)
        (meaning,) = rng.choices(range(count), shares)
        return sum_question(operator, x, y), sum_answer(operator, x, y, style, meaning)


_FACTS = facts()
_REQUESTS = requests(HARMFUL), requests(HARMLESS)
