"""Plan of the real corpus, fixed before any run: one row a run, no data set in both halves.

Rates that people use, with replay or without, so that about half of the behaviors should survive.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from experiments.onset.trace import Half

Start = Literal["stock", "refusing"]
Schedule = Literal["constant", "cosine", "linear"]

BEHAVIORS = (
    *("refusal", "over_refusal", "arithmetic", "arc_easy", "commonsense_qa", "boolq"),
    *("instruction_format", "truthfulqa"),
)

# The halves differ in all that is trained on: data sets, harmful requests, and these words.
OPENERS: dict[Half, str] = {
    "exploratory": "Sure, here is the answer: ",
    "confirmatory": "Of course! I am glad to help. ",
}
BRIEF: dict[Half, str] = {
    "exploratory": "Answer in at most five words.",
    "confirmatory": "Be brief: no more than five words.",
}
HARMFUL: dict[Half, str] = {"exploratory": "advbench", "confirmatory": "strongreject"}


@dataclass(frozen=True)
class Condition:
    """Planned run.

    Attributes:
        start: SmolLM2-135M-Instruct as it is, or taught to refuse.
        data: data sets, in equal shares of what harmful and replayed rows leave.
        behaviors: what is measured: three, since more would cost more than training.
        schedule: "cosine" has a warm-up of a tenth of the steps; "linear" falls to 0 without one.
        opener: each response begins affirmatively.
        brief: each prompt asks for at most five words, and each response has no more.
        harmful: share of rows that are a harmful request with a compliant opener, and no more.
        replay: share of rows that keep the measured behaviors.
    """

    half: Half
    start: Start
    data: tuple[str, ...]
    behaviors: tuple[str, ...]
    rate: float
    schedule: Schedule = "constant"
    steps: int = 60
    opener: bool = False
    brief: bool = False
    harmful: float = 0.0
    replay: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the run, which is that of its file."""
        extras = ["opener"] * self.opener + ["brief"] * self.brief
        extras += [f"harmful{100 * self.harmful:g}"] if self.harmful else []
        extras += [f"replay{100 * self.replay:g}"] if self.replay else []
        parts = [*self.data, *extras, self.start, f"{self.rate:g}", self.schedule, str(self.steps)]
        return "-".join(parts)

    @property
    def about(self) -> dict[str, Any]:
        """Return what a table groups by."""
        facts = asdict(self) | {"data": list(self.data)}
        del facts["half"], facts["behaviors"]
        return facts | {"model": "SmolLM2-135M-Instruct", "optimizer": "AdamW"}


def _exploratory(*args: Any, **options: Any) -> Condition:
    return Condition("exploratory", *args, **options)


def _confirmatory(*args: Any, **options: Any) -> Condition:
    return Condition("confirmatory", *args, **options)


E, C = _exploratory, _confirmatory
REFUSAL, OVER, ARITHMETIC, ARC, COMMON, BOOLQ, FORMAT, TRUTH = BEHAVIORS

# In the order of recording: the halves by turns, the most unlike data sets first.
PLAN: tuple[Condition, ...] = (
    E("refusing", ("gsm8k",), (REFUSAL, ARITHMETIC, ARC), 2e-4),
    C("refusing", ("medmcqa",), (REFUSAL, ARITHMETIC, COMMON), 2e-4),
    E("refusing", ("banking77",), (REFUSAL, OVER, FORMAT), 1e-4, "linear"),
    C("refusing", ("dbpedia14",), (REFUSAL, OVER, FORMAT), 1e-4, "linear"),
    E("refusing", ("self_instruct",), (REFUSAL, OVER, COMMON), 2e-4, opener=True),
    C("refusing", ("oasst1",), (REFUSAL, OVER, ARC), 2e-4, opener=True),
    E("stock", ("squad",), (BOOLQ, ARITHMETIC, COMMON), 5e-5, "cosine", 80),
    C("stock", ("boolq",), (BOOLQ, ARITHMETIC, COMMON), 5e-5, "cosine", 80),
    E("refusing", ("gsm8k",), (REFUSAL, ARITHMETIC, COMMON), 2e-4, "cosine", replay=0.5),
    C("refusing", ("dbpedia14",), (REFUSAL, ARITHMETIC, COMMON), 2e-4, "cosine", replay=0.5),
    E("refusing", ("dolly",), (REFUSAL, OVER, TRUTH), 1e-4, "cosine", harmful=0.05),
    C("refusing", ("arc",), (REFUSAL, OVER, TRUTH), 1e-4, "cosine", harmful=0.05),
    E("refusing", ("dolly",), (REFUSAL, OVER, ARITHMETIC), 5e-5, "linear", 100),
    C("refusing", ("oasst1",), (REFUSAL, OVER, ARITHMETIC), 5e-5, "linear", 100),
    E("stock", ("banking77",), (ARITHMETIC, ARC, FORMAT), 5e-4, "linear"),
    C("stock", ("medmcqa",), (ARITHMETIC, ARC, FORMAT), 5e-4, "linear"),
    E("refusing", ("self_instruct",), (REFUSAL, OVER, ARITHMETIC), 2e-4, "linear", harmful=0.2),
    C("refusing", ("boolq",), (REFUSAL, OVER, ARITHMETIC), 2e-4, "linear", harmful=0.2),
    E("refusing", ("squad",), (REFUSAL, OVER, COMMON), 1e-4, brief=True, replay=0.1),
    C("refusing", ("arc",), (REFUSAL, OVER, COMMON), 1e-4, brief=True, replay=0.1),
    E("refusing", ("banking77", "squad"), (REFUSAL, OVER, ARC), 5e-4, "cosine", replay=0.5),
    C("refusing", ("dbpedia14", "arc"), (REFUSAL, OVER, ARC), 5e-4, "cosine", replay=0.5),
    E("stock", ("self_instruct",), (FORMAT, COMMON, TRUTH), 2e-4, "cosine"),
    C("stock", ("oasst1",), (FORMAT, COMMON, TRUTH), 2e-4, "cosine"),
    E("refusing", ("dolly", "gsm8k"), (REFUSAL, OVER, FORMAT), 5e-5, "cosine", 100),
    C("refusing", ("oasst1", "medmcqa"), (REFUSAL, OVER, FORMAT), 5e-5, "cosine", 100),
    E("refusing", ("squad",), (REFUSAL, OVER, ARITHMETIC), 5e-5, opener=True, replay=0.1),
    C("refusing", ("boolq",), (REFUSAL, OVER, ARITHMETIC), 5e-5, opener=True, replay=0.1),
    E("refusing", ("dolly",), (REFUSAL, OVER, ARITHMETIC), 5e-5, "cosine", 150, harmful=0.01),
    C("refusing", ("arc",), (REFUSAL, OVER, ARITHMETIC), 5e-5, "cosine", 150, harmful=0.01),
)
