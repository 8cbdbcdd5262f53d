"""The section of a model card about one run, and its entries in the card's `model-index`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from riprap._extras import require
from riprap._formatting import format_score
from riprap.conclusion import BehaviorOutcome, State
from riprap.errors import ConfigError
from riprap.report._run import Run, load_run
from riprap.report._summary import policy_name_and_hash

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

BEGIN, END = "<!-- riprap: begin -->", "<!-- riprap: end -->"
KIND = "riprap"  # type of the data sets in the card's `model-index`
FALSE_ALARMS = (
    "Alerts are forecasts. How often they are false depends on the model and the data: Riprap's "
    "pages give the counts on recorded runs, by alert level and policy."
)


def write_card(run: str | Path, card: str | Path, model_name: str | None = None) -> Path:
    """Write the section about a run into a model card, and its scores into the `model-index`.

    A section of an earlier run is replaced; the rest of the card stays. Without a card at `card`, a
    new one is made.

    Args:
        run: folder of a run, or its record file.
        card: README.md of a model.
        model_name: name in the `model-index`; None: that of the card, or of the card's folder.

    Returns:
        Path of the card.

    Raises:
        RecordError: there is no readable record.
        ConfigError: the run has not ended, or the card cannot be read or written.
        MissingExtraError: huggingface_hub is not installed.
    """
    require("hf", "huggingface_hub")
    loaded, file = load_run(run), Path(card)
    if not loaded.conclusion.finished:
        raise ConfigError(f"the run {run} has not ended: a model card tells of a finished run")
    found = _read(file)
    _set_scores(found, loaded, model_name or file.absolute().parent.name)
    found.text = _merge(found.text, card_section(loaded), file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(found), encoding="utf-8")
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
        f"random sample. {run.conclusion.limits} {FALSE_ALARMS} Alert policy: {_escape(policy)}, "
        f"`{policy_hash}`. Measured by Riprap over {run.last_step:,} steps.",
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


def _read(file: Path) -> ModelCard:
    from huggingface_hub import ModelCard

    try:
        text = file.read_text(encoding="utf-8") if file.exists() else "# Model card\n"
        return ModelCard(text)
    except Exception as error:
        raise ConfigError(f"cannot read the model card {file}: {error}") from error


def _set_scores(card: ModelCard, run: Run, model_name: str) -> None:
    data: ModelCardData = card.data  # type: ignore[assignment]
    others = [own for own in data.eval_results or [] if own.dataset_type != KIND]
    data.eval_results = others + [
        _entry(own)
        for own in run.conclusion.outcomes
        if own.last is not None and own.state is not State.UNMEASURED
    ]
    data.model_name = data.model_name or model_name


def _entry(own: BehaviorOutcome) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_type=KIND,
        dataset_name=own.name,
        dataset_config=own.name,  # Hugging Face joins entries with the same type and config
        metric_type="score",
        metric_name="share of probes that pass",
        metric_value=round(own.last or 0.0, 4),
    )


def _merge(text: str, section: str, file: Path) -> str:
    """Put the section between its markers, or at the end."""
    block = f"{BEGIN}\n{section}\n{END}"
    if BEGIN not in text and END not in text:
        return f"{text.rstrip()}\n\n{block}\n" if text.strip() else f"{block}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if END not in rest or BEGIN in after or END in after or END in before:
        raise ConfigError(f"{file} has the markers {BEGIN} and {END} not once each, in this order")
    return f"{before}{block}{after}"
