"""The detectors study: real runs, resampled runs, then tables and a figure. Resumable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.detectors import tables
from experiments.detectors.bootstrap import Outcome, resample
from experiments.detectors.figures import curves_figure
from experiments.detectors.plan import NULL, Plan
from experiments.detectors.recorded_runs import Run
from experiments.detectors.runs import simulate_all
from experiments.harness import markdown
from experiments.harness.markdown import commit
from experiments.harness.preregistration import Preregistration
from riprap.monitor import versions
from riprap.report import save


def run(out: Path, workers: int = 2) -> dict[str, Any]:
    """Make the real runs that are missing, resample them, and write tables and a figure.

    Args:
        out: folder of the results.
        workers: processes, one thread each.

    Returns:
        the acceptance rows and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
    """
    preregistration = Preregistration.named("detectors")
    preregistration.verify()
    simulate_all(preregistration, workers)
    runs = [Run.load(*pair) for pair in Plan.of(preregistration).runs()]
    nulls = [one.margins for one in runs if one.condition == NULL]
    floor = next(iter(runs[0].floors.values()))
    outcomes = resample(nulls, floor, preregistration, workers)
    out.mkdir(parents=True, exist_ok=True)
    save(curves_figure(outcomes, preregistration), out / "curves.png")
    bootstrapped = tables.bootstrap_rows(outcomes, preregistration)
    accepted = tables.acceptance(bootstrapped, runs, preregistration)
    (out / "README.md").write_text(_page(runs, outcomes, bootstrapped, accepted, preregistration))
    return {"out": str(out), "acceptance": accepted}


def _page(
    runs: Sequence[Run],
    outcomes: Sequence[Outcome],
    bootstrapped: Sequence[tables.Row],
    accepted: Sequence[dict[str, Any]],
    preregistration: Preregistration,
) -> str:
    plan = Plan.of(preregistration)
    sections = {
        "What it must show": markdown.table(accepted),
        "Resampled runs": tables.bootstrap_table(bootstrapped)
        + _NOTE.format(plan=plan, first=plan.null_seeds[0], last=plan.null_seeds[-1]),
        "Delay by shape and depth": tables.delay_table(outcomes, preregistration)
        + "\n\nMedian steps from the onset at the detector's own bound, over the declines found.",
        "Real runs, all signals": tables.real_table(tables.real_rows(runs, preregistration)),
        "Leads of the default protocol's levels": tables.lead_table(runs, preregistration)
        + "\n\nMedian [least, most] in optimizer steps, over seeds that broke and were announced.",
    }
    head = (
        f"# Detectors\n\nMade by `riprap study detectors` at commit `{commit()}`, protocol "
        f"`detectors` `{preregistration.hash}`, {json.dumps(versions())}.\n\n"
        "What it means is in `FINDINGS.md` beside this file.\n\n![curves](curves.png)\n"
    )
    return head + "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())


_NOTE = """

{plan.bootstraps} null runs, each the recorded margins of one of the seeds {first} to {last}
on probes drawn again with replacement, visited as a calm monitor visits; {plan.planted}
runs for each of four shapes and depths {plan.sizes}. *Recorded*: as they are. *Levelled*: without
the slow gain of training that goes on. *Least favourable*: the mean decline is just what betting
tolerates, in every behaviour, all the time. 95 % intervals (Clopper and Pearson) are over the
resampling, not over training seeds; for those see the real runs. *Mean delay*: from the onset, all
shapes and depths; a decline never seen counts as the rest of the run. *Tuned*: the same with the
bound at which 5 % of the null runs alarm. *Area*: under the curve of delay over false-alarm
probabilities up to 20 %, levelled nulls, as a share of the rest of the run; 0 is best."""
