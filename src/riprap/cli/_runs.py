"""Commands around one training run: demo, watch, select, report, doctor."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from riprap._text import escape_control_chars
from riprap.cli._common import AS_JSON, FINDING, PROBE_SETS, STRATEGIES, command, print_result
from riprap.errors import ConfigError

app = typer.Typer()


@app.command()
@command
def demo(
    seed: int = typer.Option(1000, help="Seed of the model and of the order of the data."),
    run: Path = typer.Option(Path("runs"), help="Folder in which the run's folder is made."),
    as_json: bool = AS_JSON,
) -> int:
    """Show three recorded trainings on a page, and watch a small model lose a skill beside them.

    The training takes under a minute. In a terminal, the page stays until Ctrl-C.
    """
    from riprap.commands import demo_folder, demo_page, run_demo

    run_dir, console = demo_folder(run), Console(stderr=as_json)
    with demo_page(run_dir, console) as address:
        _finish_watch(run_demo(seed, run_dir, quiet=as_json), as_json)
        if address is not None and sys.stdout.isatty():
            console.print(f"The page stays at {address} until Ctrl-C.", highlight=False)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    return 0  # the broken behavior is what the demo shows, not a finding


@app.command()
@command
def watch(
    config: Path = typer.Argument(..., help="Configuration as YAML."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only measure the monitor's cost."),
    resume: bool = typer.Option(False, "--resume", help="Resume from the newest checkpoint."),
    as_json: bool = AS_JSON,
) -> int:
    """Fine-tune a model as CONFIG describes, under a monitor. Exit code 2 if a behavior broke."""
    from riprap.commands.watch import WatchConfig, estimate_cost, print_cost, run_watch

    if dry_run and resume:
        raise ConfigError("--dry-run measures a run from its start: remove --resume")
    settings = WatchConfig.load(config, resume)
    if not dry_run:
        return _finish_watch(run_watch(settings, quiet=as_json, resume=resume), as_json)
    cost = estimate_cost(settings, quiet=as_json)
    if as_json:
        print_result(cost, as_json, [])
    else:
        print_cost(cost, Console())
    return 0


@app.command()
@command
def fastslow(
    config: Path = typer.Argument(..., help="Configuration as YAML."),
    resume: bool = typer.Option(False, "--resume", help="Resume from the newest checkpoint."),
    as_json: bool = AS_JSON,
) -> int:
    """Train by GRPO while instructions evolve, as CONFIG says. Exit code 2 if a behavior broke."""
    from riprap.commands.fastslow import FastSlowConfig, run_fast_slow

    outcome = run_fast_slow(FastSlowConfig.load(config, resume), quiet=as_json, resume=resume)
    code = _finish_watch(outcome, as_json)
    if not as_json:
        for text in outcome["population"]:
            typer.echo(f"instruction: {escape_control_chars(text) or '(none)'}")
    return code


@app.command()
@command
def select(
    data: str = typer.Argument(
        ...,
        help="JSON Lines, JSON, CSV, TSV or Parquet file, folder of datasets.save_to_disk, or a "
        "Hugging Face dataset id.",
    ),
    model: str = typer.Option(..., help="Folder, Hugging Face id, or smollm2."),
    out: Path = typer.Option(..., help="Folder of scores, selected rows and audit."),
    strategy: str = typer.Option("moderate", help=f"Strategy: {', '.join(STRATEGIES)}."),
    ratio: float = typer.Option(0.2, help="Share of the rows to select."),
    behaviors: list[str] = typer.Option(
        [], help=f"{PROBE_SETS}; or .jsonl file with your own probes; repeatable."
    ),
    refusal_prefixes: list[str] = typer.Option(
        [], help="First words of the model's refusals; repeatable."
    ),
    messages: str | None = typer.Option(None, help="Field with the turns of a conversation."),
    prompt: str | None = typer.Option(
        None, help="Field of the prompt; a dot enters nested fields. Fields are else recognized."
    ),
    response: str | None = typer.Option(None, help="Field of the response."),
    split: str | None = typer.Option(None, help="Split of a data set with several."),
    system: str | None = typer.Option(None, help="System prompt of rows that have none."),
    id: str | None = typer.Option(None, help="Field that identifies a row."),
    category: str | None = typer.Option(None, help="Field with the category of a row."),
    lora_rank: int = typer.Option(
        32, help="Rank of the LoRA adapter that will be trained; 0: all parameters."
    ),
    batch_size: int = typer.Option(8, help="Rows per forward pass."),
    max_length: int = typer.Option(1024, help="Tokens per row; longer rows are truncated."),
    as_json: bool = AS_JSON,
) -> int:
    """Select rows of DATA for training, by their gradients; an interrupted run can be resumed."""
    from riprap.commands.select import SelectConfig, select_rows

    settings = {"strategy": strategy, "ratio": ratio, "id": id, "category": category}
    settings |= {"behaviors": behaviors, "refusal_prefixes": refusal_prefixes}
    settings |= {"model": model, "lora_rank": lora_rank, "out": out}
    settings |= {"batch_size": batch_size, "max_length": max_length}
    fields = {"messages": messages, "prompt": prompt, "response": response}
    settings["data"] = {"path": data, "split": split, "system": system} | fields
    result = select_rows(SelectConfig.parse(settings, "riprap select"), quiet=as_json)
    lines = [f"{name}: {file}" for name, file in result["files"].items()]
    print_result(result, as_json, lines)
    return 0


@app.command()
@command
def report(
    run: Path = typer.Argument(..., help="Folder of a run, or its record file."),
    out: Path | None = typer.Option(None, help="Output file; default: report.html in the folder."),
    card: Path | None = typer.Option(
        None, help="README.md of the model: write the section of a model card into it."
    ),
    model_name: str | None = typer.Option(
        None, help="With --card: name of the model in its model-index; default: that of the card."
    ),
    as_json: bool = AS_JSON,
) -> int:
    """Write the HTML report of a run, and with --card its section of a model card."""
    from riprap.conclusion import conclude
    from riprap.record import Reader, locate_record
    from riprap.report import write_card, write_report

    files = {"report": write_report(run, out or locate_record(run).parent / "report.html")}
    is_new = card is not None and not card.exists()
    if card is not None:
        files["card"] = write_card(run, card, model_name)
    found = conclude(run)
    lines = [found.line, *(f"{name}: {file}" for name, file in files.items())]
    if is_new:
        lines[-1] += " (a new file)"
    with Reader(run) as reader:
        broken = {
            name: [asdict(probe) for probe in own] for name, own in reader.broken_probes().items()
        }
    print_result(files | {"conclusion": found.to_dict(), "broken": broken}, as_json, lines)
    return 0


@app.command()
@command
def doctor(
    subject: str | None = typer.Argument(
        None, metavar="[MODEL|CONFIG]", help="Say what a model, or a configuration, would train."
    ),
    as_json: bool = AS_JSON,
) -> int:
    """Show versions and supported features, and run a self-test; or say what would train.

    Exit code 2 if a check fails.
    """
    from riprap.commands import examine

    result = examine(subject)
    if subject is not None:
        lines = result.pop("lines")
        print_result(result, as_json, lines)
        return 0
    facts = result["versions"] | result["support"]
    lines = [f"{name}: {value}" for name, value in facts.items()]
    lines += [
        f"{'ok  ' if check['passed'] else 'FAIL'} {check['name']}: {check['detail']}"
        for check in result["checks"]
    ]
    print_result(result, as_json, lines)
    return 0 if all(check["passed"] for check in result["checks"]) else FINDING


def _finish_watch(outcome: dict[str, Any], as_json: bool) -> int:
    lines = outcome["summary"].splitlines()
    if outcome["report"] is None:
        lines.append(f"record: {outcome['run']} (for the report: pip install 'riprap[report]')")
    else:
        lines.append(f"report: {outcome['report']}")
    if "model" in outcome:
        lines.append(f"trained model: {outcome['model']}")
    print_result(outcome, as_json, lines)
    return FINDING if any(step is not None for step in outcome["broken"].values()) else 0
