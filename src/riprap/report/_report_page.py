"""HTML report of one run: one self-contained file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from riprap._formatting import format_expected, format_number
from riprap._glossary import signal_words
from riprap.conclusion import Blame, State, averted
from riprap.errors import ConfigError
from riprap.evals import EvalCell
from riprap.guards import describe_actions
from riprap.record import Instructions, Writer
from riprap.report import _charts as charts
from riprap.report import _instructions as instructions
from riprap.report import _plot_data as plot_data
from riprap.report import _style as style
from riprap.report import _summary as summary
from riprap.report._bundle import Head, asset, json_for_script, render_page, vega_bundle, write_page
from riprap.report._run import BehaviorInfo, Run, load_run
from riprap.report._signal_panels import OF_TRAINING, is_thinned, signal_panels
from riprap.types import Alert, BrokenProbe

MAX_BROKEN = 12  # broken probes of a behavior that the page shows


def write_report(run: str | Path | Writer, path: str | Path) -> Path:
    """Write the report of a run, finished or in progress, as one self-contained HTML file.

    Args:
        run: folder of a run, its record file, or the record that this process writes.

    Returns:
        Path of the page.

    Raises:
        RecordError: there is no readable record at `run`.
        ConfigError: the page cannot be written to `path`, or another file is there; an earlier
            report is replaced.
    """
    loaded, file = load_run(run), Path(path)
    page = render_page("page.html", _head(loaded), **_context(loaded))
    try:
        write_page(file, "run", page)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write the report to {file}: {error}") from error
    return file


def _head(run: Run) -> Head:
    found = run.conclusion
    notes = (summary.run_progress(run),)
    head = Head("run", run.title, found.line, found.numbers, found.advice, found.limits, notes)
    return replace(head, detail=found.weights)


def _context(run: Run) -> dict[str, Any]:
    figures: list[dict[str, Any]] = []

    def figure(chart: Any) -> int:
        """Add a figure to the data of the page and return its index."""
        figures.append(chart.to_dict(validate=False))
        return len(figures) - 1

    behaviors = [_behavior(run, behavior) for behavior in run.behaviors]
    if run.has_readings:
        strip = figure(charts.alert_strip(run))
        for shown in behaviors:
            shown["figure"] = figure(
                charts.add_step_range(charts.behavior_figure(run, shown["behavior"]), run)
            )
        panels = signal_panels(run)
        drawn = [figure(charts.add_step_range(panel.chart, run)) for panel in panels]
    else:
        strip, panels, drawn = None, [], []
    found = run.instructions
    shown_panels = list(zip(panels, drawn, strict=True))
    return {
        "run": run,
        "thinned": {"panels": plot_data.is_thinned(run), "signals": is_thinned(run)},
        "behaviors": behaviors,
        "broken": [
            (info.name, *_broken(run.broken[info.name]))
            for info in run.behaviors
            if info.name in run.broken
        ],
        "blames": [(name, blame.sentences, _rows(blame)) for name, blame in run.blames.items()],
        "alert_strip": strip,
        "alerts": [
            _alert(run, alert, run.withdrawn.get(place))
            for place, alert in sorted(enumerate(run.alerts), key=lambda pair: pair[1].step)
        ],
        "evals": [(own, [_eval_row(cell) for cell in own.cells]) for own in run.evals.tables],
        "instructions": None if found is None else _instructions(run, found, figure),
        "actions": describe_actions(run.actions),
        "training": [own for own in shown_panels if own[0].signal in OF_TRAINING],
        "signals": [own for own in shown_panels if own[0].signal not in OF_TRAINING],
        "missing": [_missing(group) for group in summary.missing_readings(run)],
        "cost": summary.cost_line(run),
        "policy": summary.policy_name_and_hash(run),
        "tables": summary.metadata_tables(run),
        "documents": summary.metadata_documents(run),
        "figures": json_for_script(figures),
        "dark": json_for_script(style.DARK),
        "vega": vega_bundle() if figures else "",
        "last_step": plot_data.last_shown_step(run),
        "script": asset("page.js"),
        "levels": {str(level): color for level, color in style.LEVELS.items()},
        "style": style,
    }


def _behavior(run: Run, behavior: BehaviorInfo) -> dict[str, Any]:
    outcome = run.outcome(behavior.name)
    is_open = outcome.state is State.KEPT and (run.is_running or run.conclusion.ended_early)
    return {
        "behavior": behavior,
        "outcome": outcome,
        "label": f"{outcome.state} so far" if is_open else str(outcome.state),
        "headline": summary.headline(run, outcome),
        "summary": summary.behavior_summary(run, behavior),
        "power": summary.power_text(run, behavior),
    }


def _broken(probes: list[BrokenProbe]) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Return the table of some broken probes, empty if they have no texts; and how many there are.

    The numbers of all of them are returned as well.
    """
    has_texts = any(own.text is not None or own.now is not None for own in probes)
    steps = {own.step for own in probes if own.step is not None}
    at = f" (step {min(steps):,})" if len(steps) == 1 else ""
    rows = [
        {
            "probe": str(own.index),
            "prompt": own.text or "no text recorded",
            "the model said at the start": "not recorded" if own.before is None else own.before,
            f"it says now{at}": _says_now(own, not at),
        }
        for own in (probes[:MAX_BROKEN] if has_texts else [])
    ]
    numbers = ", ".join(str(own.index) for own in probes)
    return rows, {"count": len(probes), "hidden": len(probes) - len(rows), "numbers": numbers}


def _says_now(probe: BrokenProbe, with_step: bool) -> str:
    if probe.now is None:
        return "not recorded"
    step = f" (step {probe.step:,})" if with_step and probe.step is not None else ""
    return f"{probe.now}{step}"


def _rows(blame: Blame) -> list[dict[str, str]]:
    """Return the table of the rows to blame; columns that no row fills are left out."""
    rows = [
        {
            "row": row.name,
            "share of the fall": "" if row.share is None else f"{row.share:.1%}",
            "prompt": row.prompt,
            "answer to learn": row.response,
        }
        for row in blame.rows
    ]
    filled = [name for name in (rows[0] if rows else {}) if any(row[name] for row in rows)]
    return [{name: row[name] for name in filled} for row in rows]


def _instructions(run: Run, found: Instructions, figure: Callable[[Any], int]) -> dict[str, Any]:
    return {
        "sentence": found.sentence,
        "figure": figure(charts.add_step_range(instructions.reward_figure(found), run)),
        "population": instructions.population_table(found),
        "dropped": instructions.dropped_table(found),
        "rejected": instructions.rejected_table(found),
    }


def _eval_row(cell: EvalCell) -> dict[str, str]:
    return {
        "model": cell.model,
        "value": cell.value,
        "95 % interval": cell.interval,
        "rows": cell.rows,
        "judge": cell.judge,
        "change": cell.change,
    }


def _missing(group: summary.MissingReadings) -> dict[str, str]:
    return {
        "status": group.state,
        "behavior": group.behavior or "the run",
        "signals": group.signals,
        "reason": group.detail or "no reason recorded",
        "readings": f"{group.count:,}, {group.steps}",
    }


def _alert(run: Run, alert: Alert, withdrawn: int | None) -> dict[str, str]:
    causes = [
        f"{signal_words(r.signal)} {'not measured' if r.value is None else format_number(r.value)}"
        for r in alert.readings
        if r.value is not None or r.detail != alert.message
    ]
    note = ""
    own = next((one for one in run.conclusion.outcomes if one.name == alert.behavior), None)
    if own is not None and own.broke is None:
        margins = run.margins.get(own.name, {})
        saved = averted(alert, withdrawn, run.actions, margins, own.floor)
        note = "" if saved is None else f". {saved.note}"
    return {
        "step": f"{alert.step:,}",
        "behavior": alert.behavior or "the run",
        "level": str(alert.level),
        "ended at": "stands" if withdrawn is None else f"{withdrawn:,}",
        "message": alert.message + note,
        "forecast": format_expected(alert),
        "detector": alert.detector.replace("_", " "),
        "caused by": ", ".join(causes),
    }
