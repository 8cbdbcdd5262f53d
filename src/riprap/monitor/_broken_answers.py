"""The model's answers to probes that broke, for the record, at the end of a watch."""

from __future__ import annotations

import numpy as np

from riprap._distributed import has_sharded_parameters, rank
from riprap._text import shorten
from riprap.behaviors import Behavior
from riprap.monitor._alert_tracker import AlertTracker
from riprap.monitor._probe_runner import ProbeRunner

# Few and short: the probes may be harmful requests, and long answers to them are not kept.
MAX_PROBES, MAX_TOKENS, MAX_CHARS = 4, 12, 100


def broken_answers(tracker: AlertTracker, probe_runner: ProbeRunner) -> dict[str, dict[str, str]]:
    """Return, by behavior and number of the probe, how the model begins to answer broken probes.

    Only probes that passed at the start and fail now are answered, and only of behaviors with a
    tokenizer. One process does it; for a sharded model none does.
    """
    if rank() != 0 or has_sharded_parameters(probe_runner.model):
        return {}
    answers = {}
    for behavior in probe_runner.behaviors:
        margins = tracker.histories[behavior.name].margins
        if len(margins) < 2 or len(margins[0]) != len(margins[-1]):
            continue
        broken = np.flatnonzero((margins[0] > 0) & ~(margins[-1] > 0))[:MAX_PROBES].tolist()
        if broken:
            said = _answers(probe_runner, behavior, broken)
            answers[behavior.name] = dict(zip(map(str, broken), said, strict=False))
    return {name: said for name, said in answers.items() if said}


def _answers(probe_runner: ProbeRunner, behavior: Behavior, indices: list[int]) -> list[str]:
    tokenizer, rows = behavior.tokenizer, behavior.token_rows()
    if tokenizer is None or rows is None:
        return []
    from riprap.diagnosis.evidence import greedy_responses  # loads scipy.stats

    prompts = [rows[index] for index in indices]
    found = greedy_responses(probe_runner.model, prompts, MAX_TOKENS)
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in found]
    return [shorten(text.strip(), MAX_CHARS) for text in texts]
