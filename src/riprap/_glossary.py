"""Words that pages and the command line explain: one short sentence a word."""

from __future__ import annotations

import re

WORDS = {
    # what is measured
    "behavior": "Something that the model could do before training and is to keep.",
    "probe": "A fixed test input, read again and again while the model trains.",
    "margin": "How far the model is from failing a probe: below 0 the probe fails.",
    "mean margin": "The mean of the margins of all probes of a behavior.",
    "threshold margin": "The margin that decides: when it falls to 0, the score falls under its "
    "floor.",
    "score": "The share of the probes that pass.",
    "floor": "The lowest score that is still good: under it, the behavior is broken.",
    "95 % interval": "Where the true score probably is, if the probes are a random sample.",
    "probe evaluation": "One reading of all probes, between two steps of the training.",
    "interference": "The change of a behavior's mean margin that the last updates are predicted "
    "to have made.",
    "signal": "A number that is read from the model while it trains.",
    "learning rate": "The size of the training's steps.",
    "loss": "What the training makes small: how badly the model predicts the training data.",
    # what is said
    "forecast": "When the behavior is expected to break if training goes on as it does; the "
    "interval is meant to hold 80 % of such breaks.",
    "alert": "A forecast that a behavior may break; the levels are watch, warning and critical.",
    "watch": "The mildest alert: a margin falls.",
    "warning": "An alert: a break is expected if training goes on as it does.",
    "critical": "The gravest alert: a break is expected soon, or has begun.",
    "withdrawn": "The alert was taken back, because its reason had gone.",
    "alert policy": "The rules by which alerts are raised, fixed before the run.",
    "policy hash": "A fingerprint of the alert policy: two runs with the same one had the same "
    "rules.",
    "detector": "The rule that raised an alert.",
    "guard": "A method that changes training so that a behavior is kept.",
    # states
    "kept": "The score never was under its floor.",
    "weakened": "The score never was under its floor, but a warning or critical alert stands.",
    "broken": "The score fell under its floor.",
    "recovered": "The score fell under its floor and came back.",
    "not measurable": "The probes could not be read, or no longer.",
    "never had": "The score was under its floor before training.",
    "not trained": "The training changed nothing: the behavior is as it was, and what a training "
    "would do is not known.",
    # statuses of readings
    "MEASURED": "The number was measured.",
    "NOT_RUN": "Nothing was measured; the reason stands beside it.",
    "INSUFFICIENT": "Too little was measured to give a number.",
    "ERROR": "The measurement failed; training went on.",
    # rows
    "harm": "The predicted fall of a behavior's mean margin by one training step on a row.",
    "norm": "The length of a row's gradient: how strongly the row pulls at the model.",
    "tokens": "Pieces of text, of which the model reads and writes one at a time.",
    "ratio": "The share of the rows that is selected.",
    "warm start": "The first steps of the training, made on a copy of the model.",
    "pace": "The change of the mean margin by one step, as it was measured.",
    "drift": "The change of the mean margin by one step, as the rows' gradients predict it.",
    "replay": "Training also on examples of what is to be kept.",
    # diagnosis
    "verdict": "What was lost: the knowledge, the readiness to use it, or both.",
    "alignment loss": "The model still can, but no longer does.",
    "knowledge loss": "The model no longer knows how.",
    "recovery": "How much a few examples bring back: much, if the model still knows.",
    "recovery by count": "How much comes back after more and more examples.",
    "naive model": "A model that never had the behavior, given the same examples.",
    "prefix forcing": "How often the model goes on when the first tokens of the right answer "
    "are given.",
    "linear decodability": "If a simple classifier still finds the answer inside the model.",
    "linear path": "The score of mixtures of the two models' weights, from one to the other.",
    "repair": "A change of the tuned model that is to bring behaviors back.",
    "KL": "How differently two models choose the next token: 0 if they agree.",
    "nats": "The unit of the loss: lower is better.",
}
SIGNALS = {  # stored name → word
    "margin_low": "threshold margin",
    "margin": "mean margin",
    "forecast_median": "forecast",
    "forecast_low": "forecast",
    "forecast_high": "forecast",
}
# Words that mean the same wherever they stand; the others are explained where a page says so.
IN_TEXTS = (
    *("behavior", "probe", "margin", "mean margin", "threshold margin", "score", "floor"),
    *("95 % interval", "interference", "learning rate", "alert", "guard", "warm start", "replay"),
    *("withdrawn", "detector", "alert policy", "naive model", "KL"),
)


def _plural(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "sh")) else f"{word}s"


_SINGULARS = {_plural(word): word for word in WORDS}
_FORMS = [*IN_TEXTS, *map(_plural, IN_TEXTS)]
# Not in code, such as `guard=guards.AutoGuard` or `guard: {name: AutoGuard}`.
_PATTERN = re.compile(
    rf"(?<![-\w.=\"])(?:{'|'.join(sorted(_FORMS, key=len, reverse=True))})"
    r"(?![-\w=(]|\.\w|: \{)"
)


def explanation(word: str) -> str | None:
    """Return the sentence that explains a word, also in the plural; None: it is none of these."""
    return WORDS.get(_SINGULARS.get(word, word))


def explained_parts(text: str) -> list[tuple[str, str | None]]:
    """Split a text into pieces, each with its explanation if it is one of `IN_TEXTS`."""
    parts: list[tuple[str, str | None]] = []
    end = 0
    for match in _PATTERN.finditer(text):
        parts += [(text[end : match.start()], None), (match[0], explanation(match[0]))]
        end = match.end()
    return [(piece, why) for piece, why in [*parts, (text[end:], None)] if piece]


def signal_words(signal: str) -> str:
    """Return the stored name of a signal in words."""
    return SIGNALS.get(signal) or signal.replace("_", " ")
