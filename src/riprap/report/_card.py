"""The section of a model card about one run, and its entries in the card's `model-index`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from riprap._formatting import format_score
from riprap.conclusion import BehaviorOutcome, State
from riprap.errors import ConfigError
from riprap.report._card_header import KIND, set_scores
from riprap.report._run import Run, load_run
from riprap.report._summary import policy_name_and_hash

BEGIN, END = "<!-- riprap: begin -->", "<!-- riprap: end -->"
NEW_CARD = "README.md"  # the name under which Hugging Face reads a card
FALSE_ALARMS = (
    "Alerts are forecasts. How often they are false depends on the model and the data: Riprap's "
    "pages give the counts on recorded runs, by alert level and policy."
)


def write_card(run: str | Path, card: str | Path, model_name: str | None = None) -> Path:
    """Write the section about a run into a model card, and its scores into the `model-index`.

    What an earlier run wrote is replaced; all else in the card stays as it is, to the letter.
    Without a card at `card`, a new one is made if it is named README.md: another name is a typing
    error more often than a wish.

    Args:
        run: folder of a run, or its record file.
        card: README.md of a model.
        model_name: name in the `model-index`; None: that of the card. Without either, a warning
            says that no scores are written there.

    Returns:
        Path of the card.

    Raises:
        RecordError: there is no readable record.
        ConfigError: the run has not ended, there is no card of that name, or it cannot be read or
            written.
    """
    loaded, file = load_run(run), Path(card)
    if not loaded.conclusion.finished:
        raise ConfigError(f"the run {run} has not ended: a model card tells of a finished run")
    if not file.parent.is_dir():
        raise ConfigError(f"cannot write the model card {file}: there is no folder {file.parent}")
    if not file.exists() and file.name != NEW_CARD:
        there = f": did you mean {file.with_name(NEW_CARD)}?"
        there = (
            there if file.with_name(NEW_CARD).exists() else f", and new ones are named {NEW_CARD}"
        )
        raise ConfigError(f"there is no model card {file}{there}")
    card_parts = _read(file)
    line_break = _first_break("".join(card_parts))
    begin, header, end, text = card_parts
    text = _merge(text, card_section(loaded), file, line_break)
    header = set_scores(header, _results(loaded), model_name, file, line_break)
    if header and not end:
        begin, end = f"{begin}---{line_break}", f"---{line_break}"
    elif end == "---":  # the card ended there
        end += line_break
    whole = begin + header + end + text
    try:
        file.write_text(whole, encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"cannot write the model card {file}: {error}") from error
    return file


def card_section(run: Run) -> str:
    """Return the section as Markdown, without its markers."""
    policy, policy_hash = policy_name_and_hash(run)
    rows = [_row(own) for own in run.conclusion.outcomes]
    lines = [
        "## Behaviors before and after fine-tuning",
        "",
        _escape(run.conclusion.line),
        "",
        "| behavior | before | after | 95 % interval | probes | floor | state |",
        "|---|---|---|---|---|---|---|",
        *("| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows),
        "",
        "Scores are shares of fixed probes that pass; intervals (Wilson) take the probes as a "
        f"random sample. {_escape(run.conclusion.limits)} {FALSE_ALARMS} Alert policy: "
        f"{_escape(policy)}, `{policy_hash}`. Measured by Riprap over {run.last_step:,} steps.",
    ]
    return "\n".join(lines)


def _row(own: BehaviorOutcome) -> list[str]:
    before, after = (
        "–" if score is None else format_score(score, own.floor) for score in (own.first, own.last)
    )
    span = "–" if own.interval is None else "{:.2f} to {:.2f}".format(*own.interval)
    state = f"{own.state} at step {own.broke:,}" if own.broke is not None else str(own.state)
    return [own.name, before, after, span, str(own.n_probes), f"{own.floor:g}", state]


def _escape(text: str) -> str:
    """Escape what Markdown and HTML would read as markup."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    for character in "\\`*_[]|":
        text = text.replace(character, f"\\{character}")
    return text


def _read(file: Path) -> tuple[str, str, str, str]:
    """Return the parts of a card: mark, lines of the YAML header, mark, and the text after it.

    Together they are the whole card. Without a header, a byte order mark may be in the first.
    """
    try:
        if not file.exists():
            return "", "", "", "# Model card\n"
        with file.open(encoding="utf-8", newline="") as opened:
            text = opened.read()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the model card {file}: {error}") from error
    found = re.match(r"(\ufeff?\s*---\r?\n)((?:.*?\r?\n)??)(---(?:\r?\n|\Z))", text, re.DOTALL)
    if found:
        return found[1], found[2], found[3], text[found.end() :]
    rest = text.removeprefix("\ufeff")
    return text[: len(text) - len(rest)], "", "", rest


def _first_break(text: str) -> str:
    found = re.search(r"\r?\n", text)
    return found[0] if found else "\n"


def _results(run: Run) -> list[dict[str, Any]]:
    """Return the scores in the form of the `model-index`."""
    return [
        {
            "task": {"type": "text-generation"},
            # Hugging Face joins entries with the same type and config.
            "dataset": {"type": KIND, "name": own.name, "config": own.name},
            "metrics": [
                {"type": "score", "value": round(own.last, 4), "name": "share of probes that pass"}
            ],
        }
        for own in run.conclusion.outcomes
        if own.last is not None and own.state is not State.UNMEASURED
    ]


def _merge(text: str, section: str, file: Path, line_break: str) -> str:
    """Put the section between its markers, or at the end, after a blank line."""
    block = f"{BEGIN}\n{section}\n{END}".replace("\n", line_break)
    if BEGIN not in text and END not in text:
        ends = text[len(text.rstrip()) :].count("\n") if text.strip() else 2
        return f"{text}{line_break * (2 - ends)}{block}{line_break}"  # fewer than 0 are none
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if END not in rest or BEGIN in after or END in after or END in before:
        raise ConfigError(f"{file} has the markers {BEGIN} and {END} not once each, in this order")
    return f"{before}{block}{after}"
