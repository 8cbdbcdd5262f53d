"""Fast–slow training: instructions learn what is transient; needs `riprap[fastslow]`.

- `FastSlow`: spreads the rollouts of TRL's `GRPOTrainer` over a population of instructions, and
  evolves the population with GEPA while the weights train.
- `check_arguments`: refuses what `FastSlow` would, before there is a trainer.
- `Cycle`, `Candidate`, `Rejected`: what one evolution of the population found.
- `EditGrammar`, `LanguageModel`: proposers of new instructions; a proposer is any function of a
  `Request`, which has the instruction, each `Example` of it, and the model in training.
- `before_problem`: how an instruction and a problem become one prompt.

Source: Learning, Fast and Slow (arXiv 2605.12484). Fidelity: variant; `docs/fastslow.md` lists what
is not the paper's.
"""

# ruff: noqa: E402
from riprap._extras import EXTRAS, require

require("fastslow", *EXTRAS["fastslow"])

from riprap.fastslow._arguments import check_arguments
from riprap.fastslow._fast_slow import FastSlow
from riprap.fastslow._population import Candidate, Cycle, Rejected
from riprap.fastslow._proposers import EditGrammar, Example, LanguageModel, Proposer, Request
from riprap.fastslow._rollouts import before_problem

__all__ = [
    "Candidate",
    "Cycle",
    "EditGrammar",
    "Example",
    "FastSlow",
    "LanguageModel",
    "Proposer",
    "Rejected",
    "Request",
    "before_problem",
    "check_arguments",
]
