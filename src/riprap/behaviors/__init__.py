"""Behaviors: a probe set and a margin, and what is needed to evaluate the margin on any model.

- `Behavior`, with a constructor for each kind of margin; `DEFAULT_FLOOR`.
- `MarginFunction`, `LastLogitsMargin` and `ProbeSet`: base classes for margins and probes of your
  own; `Margins`: margins with a statement on whether they measure the behavior.
- `Choice`, `Continuations`, `Likelihood`, `NextToken`, `TokenBatch`: the classes behind the
  constructors.
- `probe_sets`: shipped probe sets.
- `require_behaviors`: check of a list of behaviors.
- `is_refusal`: a judge of generated answers, without a model.
- `collect_answers`, `note_answers`: how the model begins to answer, from the pass of the margins.
- `last_logits` and others: tokenization, numbers of tokens and logits of any model.
"""

from riprap.behaviors._answers import collect_answers, note_answers
from riprap.behaviors._base import MarginFunction, PlainMargin, ProbeSet
from riprap.behaviors._behavior import DEFAULT_FLOOR, Behavior
from riprap.behaviors._behavior_lists import require_behaviors
from riprap.behaviors._last_logits import last_logits
from riprap.behaviors._margin_fns import (
    Choice,
    Continuations,
    LastLogitsMargin,
    Likelihood,
    NextToken,
    score_continuations,
)
from riprap.behaviors._margin_formulas import Margins
from riprap.behaviors._model_io import (
    TokenBatch,
    accepted_arguments,
    device_of,
    logits_of,
)
from riprap.behaviors._pass_state import (
    end_aligned,
    in_comparison,
    in_prefix_pass,
    inner_autocast,
    token_mask,
)
from riprap.behaviors._refusal_judge import is_refusal
from riprap.behaviors._response_prefix_margin import ResponsePrefix
from riprap.behaviors._response_prefixes import greedy_decode
from riprap.behaviors._token_counts import count_tokens, shared_start
from riprap.behaviors._token_ids import parse_token_rows
from riprap.behaviors._tokenization import Prompt, encode_continuations, encode_prompts

__all__ = [
    "DEFAULT_FLOOR",
    "Behavior",
    "Choice",
    "Continuations",
    "LastLogitsMargin",
    "Likelihood",
    "MarginFunction",
    "Margins",
    "NextToken",
    "PlainMargin",
    "ProbeSet",
    "Prompt",
    "ResponsePrefix",
    "TokenBatch",
    "accepted_arguments",
    "collect_answers",
    "count_tokens",
    "device_of",
    "encode_continuations",
    "encode_prompts",
    "end_aligned",
    "greedy_decode",
    "in_comparison",
    "in_prefix_pass",
    "inner_autocast",
    "is_refusal",
    "last_logits",
    "logits_of",
    "note_answers",
    "parse_token_rows",
    "require_behaviors",
    "score_continuations",
    "shared_start",
    "token_mask",
]
