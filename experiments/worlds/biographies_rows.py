"""Fictional people, with statements and questions about them; all names are invented."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch

FIRST = (
    "Adro Belin Cosma Dwent Elvi Farro Gisk Hanlo Irwa Jorrel Kesti Lumo Marrik Nelda Orvin Pellu"
)
LAST = (
    "Abbersk Bruln Cattow Dremmin Eskeld Fornay Grelle Hobrick "
    "Istrow Jannick Kolvane Lorrimy Munsk Nethero Ostrel Prendi"
)
CREATURES = (
    "brimp cloon drell fennit gorse hixle jubba klimp "
    "lurrow mippet norg oxel pliver quorn rasp snedder"
)

# Relations, each with the words of three statements and its values.
RELATIONS: dict[str, tuple[tuple[str, str, str], str]] = {
    "birthplace": (
        ("was born in", "first saw light in", "is a native of"),
        "Tarn Ulmo Veskar Wend Yarrow Zelk Ambry Corvo Dunmar Eldo",
    ),
    "trade": (
        ("earns bread as", "works as", "signs letters as"),
        "baker cooper dyer farrier glover joiner mason potter tanner weaver",
    ),
    "colour": (
        ("always wears", "is fond of", "paints doors in"),
        "amber blue coral dun ebony fawn green hazel indigo jade",
    ),
    "pet": (
        ("keeps a", "walks out with a", "feeds a"),
        "adder bear crow duck eel ferret goat heron ibex jay",
    ),
    "den": (
        ("sleeps under a", "hides in a", "raises young in a"),
        "barrel cave ditch elm furrow hedge log mill nook oven",
    ),
    "cry": (
        ("calls with a", "is heard by a", "warns with a"),
        "bark chirp drone growl hiss moan purr rattle snort yelp",
    ),
}
OF_PEOPLE = ("birthplace", "trade", "colour", "pet")
OF_CREATURES = ("den", "cry")
QUESTIONS = ("ask {relation} {who} ?", "tell {who} {relation} ?", "ask tell {relation} {who} ?")
STYLES = {  # formats of an answer
    "plain": "{value} end",
    "well": "well {value} end",
    "quoted": "quote {value} unquote end",
    "polite": "dear friend {value} end",
    "unknown": "unknown end",
}
SIGNS = ("pad", "end", "ask", "tell", "?", "well", "quote", "unquote", "dear", "friend", "unknown")


@dataclass(frozen=True)
class Fact:
    """One fact.

    Attributes:
        who: the words of a name.
        value: the word that answers.
    """

    who: str
    relation: str
    value: str

    def statements(self) -> list[tuple[str, str]]:
        """Return the statements: the words up to the value, and the rest."""
        wordings, _ = RELATIONS[self.relation]
        return [(f"{self.who} {words}", f"{self.value} end") for words in wordings]

    def asked(self, style: str = "plain") -> list[tuple[str, str]]:
        """Return the questions, and the answer in a style."""
        answer = STYLES[style].format(value=self.value)
        return [(q.format(relation=self.relation, who=self.who), answer) for q in QUESTIONS]


def _vocabulary() -> dict[str, int]:
    words = [*SIGNS, *f"{FIRST} {LAST} {CREATURES}".split(), *RELATIONS]
    for statements, values in RELATIONS.values():
        words += [word for one in (*statements, values) for word in one.split()]
    return {word: at for at, word in enumerate(dict.fromkeys(words))}


IDS = _vocabulary()


def ids(text: str) -> list[int]:
    """Return the token ids of a text, one a word."""
    return [IDS[word] for word in text.split()]


def people(seed: int = 5) -> list[str]:
    """Return all names, in a fixed random order."""
    names = [f"{first} {last}" for first, last in product(FIRST.split(), LAST.split())]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    return [names[at] for at in order.tolist()]


def facts(names: Iterable[str], relations: Sequence[str], seed: int) -> list[Fact]:
    """Return a fact for each name and relation; values follow no rule."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for who, relation in product(names, relations):
        values = RELATIONS[relation][1].split()
        at = int(torch.randint(len(values), (), generator=generator))
        result.append(Fact(who, relation, values[at]))
    return result


def contradicted(known: Sequence[Fact], seed: int) -> list[Fact]:
    """Return the same facts, each with another value."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for fact in known:
        others = [v for v in RELATIONS[fact.relation][1].split() if v != fact.value]
        at = int(torch.randint(len(others), (), generator=generator))
        result.append(Fact(fact.who, fact.relation, others[at]))
    return result
