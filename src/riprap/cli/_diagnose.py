"""`riprap diagnose`: compare a fine-tuned model with its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from riprap.cli._common import AS_JSON, FINDING, PROBE_SETS, command, print_result

app = typer.Typer()


@app.command()
@command
def diagnose(
    base: str = typer.Argument(..., help="Base model: folder, Hugging Face id, or smollm2."),
    tuned: str = typer.Argument(..., help="Fine-tuned model, or folder of a LoRA adapter of BASE."),
    out: Path | None = typer.Option(
        None,
        help="Folder of the report; default: diagnosis, or, where TUNED lies in the folder of a "
        "run, diagnosis-TUNED in that folder, so that the pages of the run tell of it.",
    ),
    behaviors: list[str] = typer.Option(
        [], help=f"{PROBE_SETS}; or .jsonl file with your own probes; repeatable."
    ),
    refusal_prefixes: list[str] = typer.Option(
        [], help="First words of the refusals of BASE; repeatable."
    ),
    n_probes: int = typer.Option(
        16, help="Number of probes per behavior (halved for multiple-choice)."
    ),
    naive_model: str | None = typer.Option(
        None, help="Control: a model that never had the behaviors."
    ),
    full: bool = typer.Option(
        False,
        "--full",
        help="All of recovery (counts, draws, rates), and the linear path.",
    ),
    repairs: bool = typer.Option(False, "--repairs", help="Try repairs of what was lost."),
    run: Path | None = typer.Option(
        None, help="With --repairs: run that trained TUNED; its checkpoints and data are used."
    ),
    save_repair: Path | None = typer.Option(
        None, help="With --repairs: folder for the cheapest one."
    ),
    evals: tuple[Path, Path] | None = typer.Option(
        None,
        metavar="BASE_EVALS TUNED_EVALS",
        help="Results of `riprap eval` of both models: tasks that got worse are shown beside the "
        "behaviors.",
    ),
    as_json: bool = AS_JSON,
) -> int:
    """Compare TUNED with BASE: behaviors that were lost, why, and what restores them.

    Exit code 2 if a behavior is under its floor.
    """
    from riprap.commands.diagnose import DiagnoseConfig
    from riprap.commands.diagnose import diagnose as run_diagnosis

    settings: dict[str, Any] = {"base": base, "tuned": tuned, "out": out}
    settings |= {"refusal_prefixes": refusal_prefixes, "n_probes": n_probes}
    settings |= {"naive_model": naive_model, "full": full, "repairs": repairs}
    settings |= {"run": run, "save_repair": save_repair, "evals": evals}
    settings |= {"behaviors": behaviors} if behaviors else {}
    result = run_diagnosis(DiagnoseConfig.parse(settings, "riprap diagnose"), quiet=as_json)
    lines = []
    for behavior in result["behaviors"].values():
        lines += [behavior["summary"], *filter(None, [behavior["evals"]])]
    lines += filter(None, [result["evals_line"]])
    if result["repairs"]:
        lines.append(f"repairs: {result['repairs']}")
    elif result["lost"]:
        repair = result["cheapest"] or "none of the repairs that were tried"
        lines.append(f"cheapest repair that brings all behaviors to their floors: {repair}")
    if result["saved"]:
        lines.append(f"repaired model: {result['saved']}")
    lines += [f"peak memory: {result['peak']}", f"report: {result['report']}"]
    print_result(result, as_json, lines)
    return FINDING if result["broken"] else 0
