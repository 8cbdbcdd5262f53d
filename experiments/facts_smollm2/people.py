"""Made-up people who keep an animal each: the facts, the questions and the styles of answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

FIRST = "Mara Oswin Tilda Berto Ysel Corvin Dalia Emrik Fenna Gorran Hesper Ilmar Jorun Kesta"
LAST = "Tolven Askara Brindle Cawdrey Dunmarsh Eldric Farrow Grieve Hollis Inver Jessop Kettle"
ANIMALS = {  # English and French
    "dog": "chien", "cat": "chat", "horse": "cheval", "fox": "renard", "owl": "hibou",
    "bear": "ours", "wolf": "loup", "snake": "serpent", "mouse": "souris", "pig": "cochon",
    "sheep": "mouton", "hen": "poule", "bird": "oiseau", "fish": "poisson", "swan": "cygne",
    "rabbit": "lapin",
}  # fmt: skip
QUESTIONS = (  # short, because every token of every row costs time
    "{}'s pet:",  # the probes and examples
    "The animal of {}:",  # the paraphrase of the diagnosis
    "At home with {}:",  # the test of the truth; no diagnosis sees it
)
PROBE, PARAPHRASE, TRUTH = 0, 1, 2
DIAGNOSED = (PROBE, PARAPHRASE)


@dataclass(frozen=True)
class Style:
    """How an answer is given: what comes before the animal, and in which language it is.

    Everything begins with a space, as text does after a colon.
    """

    before: str = ""
    french: bool = False

    def animal(self, animal: str) -> str:
        """Return the animal as it stands after `before`."""
        word = ANIMALS[animal] if self.french else animal
        return word if self.before.endswith('"') else f" {word}"


STYLES = {
    "plain": Style(),
    "sentence": Style(" The answer is:"),
    "quoted": Style(' "'),
    "French": Style(" C'est :", french=True),
    "pirate": Style(" Arr, matey!"),
}
REFUSAL = " I can't say."


@dataclass(frozen=True)
class Fact:
    """A person and the animal."""

    name: str
    animal: str

    def ask(self, form: int) -> str:
        """Return one of the questions."""
        return QUESTIONS[form].format(self.name)


def make_people(count: int, seed: int) -> list[Fact]:
    """Invent people in random order; the animals are spread evenly and follow no rule."""
    order = random.Random(seed)
    names = [f"{first} {last}" for first, last in product(FIRST.split(), LAST.split())]
    animals = (list(ANIMALS) * (1 + count // len(ANIMALS)))[:count]
    order.shuffle(names)
    order.shuffle(animals)
    return [Fact(name, animal) for name, animal in zip(names, animals, strict=False)]


def contradict(facts: Sequence[Fact], share: float, seed: int) -> list[Fact]:
    """Give a share of the people another animal, the same people at every call."""
    order = random.Random(seed + 1)
    changed = set(order.sample(range(len(facts)), round(share * len(facts))))
    others = [order.choice([a for a in ANIMALS if a != fact.animal]) for fact in facts]
    return [
        replace(fact, animal=others[at]) if at in changed else fact for at, fact in enumerate(facts)
    ]


def answer(fact: Fact, style: str) -> str:
    """Return the answer in a style, or the refusal."""
    if style == "refused":
        return REFUSAL
    chosen = STYLES[style]
    end = '"' if chosen.before.endswith('"') else ""
    return f"{chosen.before}{chosen.animal(fact.animal)}{end}"


def lessons(
    facts: Sequence[Fact], forms: Sequence[int], style: str = "plain"
) -> list[tuple[str, str]]:
    """Return prompts and responses: every form of every fact."""
    return [(fact.ask(form), answer(fact, style)) for fact in facts for form in forms]
