"""Draw the README's figure: `python tools/readme_figure.py runs/smollm2-affirmative`.

The run is made by `python -m experiments smollm2`. The figure shows score, margins and predicted
change of one behavior.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from riprap.report import load_run, run_figure, save_figure

OUT = Path(__file__).parents[1] / "docs" / "figures"


def main() -> None:
    """Write docs/figures/smollm2-BEHAVIOR.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run's record")
    parser.add_argument("--behavior", default="refusal")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    shown = [behavior for behavior in run.behaviors if behavior.name == arguments.behavior]
    figure = run_figure(replace(run, behaviors=shown), width=760)
    print(save_figure(figure, OUT / f"smollm2-{arguments.behavior}.png"))


if __name__ == "__main__":
    main()
