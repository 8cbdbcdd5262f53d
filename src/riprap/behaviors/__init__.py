"""Behaviours: probes, margins by kind, and packs of authored probes."""

from riprap.behaviors._behavior import FLOOR, Behavior
from riprap.behaviors._margin_fns import Choice, NextToken, Options, options_read
from riprap.behaviors._margin_formulas import Margins
from riprap.behaviors._model_io import (
    TokenBatch,
    accepted_arguments,
    device_of,
    last_logits,
    logits_of,
)
from riprap.behaviors._prefix_cache import reading_ahead
from riprap.behaviors._response_prefixes import greedy, is_refusal
from riprap.behaviors._token_ids import token_rows
from riprap.behaviors._tokenization import Prompt, encode_continuations, encode_prompts

__all__ = [
    "FLOOR",
    "Behavior",
    "Choice",
    "Margins",
    "NextToken",
    "Options",
    "Prompt",
    "TokenBatch",
    "accepted_arguments",
    "device_of",
    "encode_continuations",
    "encode_prompts",
    "greedy",
    "is_refusal",
    "last_logits",
    "logits_of",
    "options_read",
    "reading_ahead",
    "token_rows",
]
