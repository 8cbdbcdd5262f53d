"""Judges of answers, of the protocol of the package judgezoo.

- `Judge.from_name`, `judge_names`: judges by name; `Judge`: base class for one of your own.
- `RefusalRules`, `RefusalDetector`: whether an answer refuses; no language model is needed.
- `Classifier`, `Guard`: Hugging Face models, by id or folder.
- `judge_answers`: scores of answers by any callable of the protocol.
- `labelled_half`, `training_rows`: rows that the detector learns from, and that measure it.
"""

from riprap.evals.judges._base import (
    AnyJudge,
    Conversation,
    Judge,
    conversation,
    judge_answers,
    judge_name,
    judge_names,
    register,
)
from riprap.evals.judges._models import Classifier, Guard, harmbench, llama_guard, wildguard
from riprap.evals.judges._refusals import (
    RefusalDetector,
    RefusalRules,
    labelled_half,
    training_rows,
)

register(
    {
        "refusal_rules": RefusalRules,
        "refusal_detector": RefusalDetector.from_folder,
        "classifier": Classifier,
        "llama_guard": llama_guard,
        "wildguard": wildguard,
        "harmbench": harmbench,
    }
)

__all__ = [
    "AnyJudge",
    "Classifier",
    "Conversation",
    "Guard",
    "Judge",
    "RefusalDetector",
    "RefusalRules",
    "conversation",
    "judge_answers",
    "judge_name",
    "judge_names",
    "labelled_half",
    "register",
    "training_rows",
]
